"""`builder export` and `builder inspect` from a terminal's view."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from builder.nvcc import find_nvcc
from tests.builder.artifacts import listing, run, version_listing, write_config, write_items


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and two versions, the second of other vectors."""
    folder = tmp_path_factory.mktemp("exported")
    write_items(folder, {"sku": [7, 2**63 - 1, 3], "colour": ["red", None, "blue"], "price": [1.5, 2.0, None]})
    features = "[{name: colour, kind: category, filter: true}, {name: price, kind: number}]"
    data = f"data: {{items: {{path: items.parquet, id: sku, features: {features}}}}}\nindex: {{results: 3}}\n"
    for dims in (3, 4):
        config = write_config(folder, np.eye(3, dims, dtype=np.float32), data)
        assert run("export", config, "--repository", folder / "repository") == 0
    return folder


def test_export_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "films.npy", np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32))
    repository = tmp_path / "repository"
    arguments = ("export", tmp_path / "films.npy", "--repository", repository, "--model", "films", "--threads", "2")
    arguments += ("--instances", "3")
    assert run(*arguments) == 0
    captured = capsys.readouterr()
    assert f"{repository}/films/1: 300 items, 4 clusters, " in captured.out
    assert "over 300 queries (item vectors)" in captured.out
    assert "Measuring recall: " in captured.err
    cuda = "sm_" if find_nvcc() else "none, see docs/gpu.md"
    assert f"operators for the CPU; for CUDA: {cuda}" in captured.out
    assert run(*arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["version"] == f"{repository}/films/2"
    assert (report["index"]["items"], report["recall"]["queries"]) == (300, 300)
    assert listing(repository) == version_listing(1, 2, model="films")
    for name in ("config.pbtxt", "configs/pytorch.pbtxt"):
        text = (repository / "films" / name).read_text()
        assert 'INTRA_OP_THREAD_COUNT"\n  value {\n    string_value: "2"' in text
        assert "instance_group {\n  count: 3\n" in text


def test_recall_below_the_target_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = np.random.default_rng(1).normal(size=(2000, 20)).astype(np.float32)
    config = write_config(tmp_path, vectors, "index: {clusters: 50, probes: 1, results: 10, candidates: 10}")
    assert run("export", config, "--repository", tmp_path / "repository") == 0
    assert "warning: below the target of 0.99; raise index.probes or index.candidates" in capsys.readouterr().err


def test_values_with_brackets_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path, {"sku": [0, 1], "colour": ["[/b]", "[red]"]})
    data = "data: {items: {path: items.parquet, id: sku, features: [{name: colour, kind: category}]}}\n"
    config = write_config(tmp_path, np.eye(2, 3, dtype=np.float32), data)
    assert run("export", config, "--repository", tmp_path / "repository") == 0
    assert run("inspect", "--repository", tmp_path / "repository") == 0
    assert "2: [/b], [red]" in capsys.readouterr().out


def test_inspect_shows_the_newest_or_the_one_asked_for(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = exported / "repository"
    assert run("inspect", "--repository", repository, "--json") == 0
    assert json.loads(capsys.readouterr().out)["index"]["dims"] == 4
    assert run("inspect", "--repository", repository, "--json", "--version", 1) == 0
    assert json.loads(capsys.readouterr().out)["index"]["dims"] == 3
    assert run("inspect", "--repository", repository) == 0
    text = capsys.readouterr().out.replace("\n", "")
    assert f"{repository}/retrieval/2 (versions: 1, 2)" in text
    for shown in ("3 of 4 dims", "query vector of 4 dims", "colour", "2: blue, red", "libsilvertriton_ops.so"):
        assert shown in text


@pytest.mark.parametrize(
    ("item", "values"),
    [
        (7, {"colour": "red", "price": 1.5}),
        (2**63 - 1, {"colour": None, "price": 2}),
        (3, {"colour": "blue", "price": None}),
    ],
)
def test_inspect_shows_an_item(
    exported: Path, capsys: pytest.CaptureFixture[str], item: int, values: dict[str, object]
) -> None:
    assert run("inspect", "--repository", exported / "repository", "--item", item, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"item_id": item, "cluster": 0, **values}
    assert run("inspect", "--repository", exported / "repository", "--item", item) == 0
    assert f"colour: {values['colour']}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--item", 4), 1, "/retrieval/2 has no item 4; it holds 3 items"),
        (("--item", 2**63), 2, "is not in the range"),
        (("--version", 9), 1, "does not hold version 9 (versions: 1, 2); export one with: builder export"),
        (("--version", 0), 2, "is not in the range"),
        (("--model", "films"), 1, "does not hold any version (versions: none)"),
        (("--model", ""), 1, "does not hold any version"),
    ],
)
def test_inspect_of_what_is_not_there(
    exported: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], code: int, message: str
) -> None:
    assert run("inspect", "--repository", exported / "repository", *arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())


def damage(version: Path, what: str) -> None:
    model = version / "model.pt"
    content = bytearray(model.read_bytes())
    if what == "truncated":
        model.write_bytes(content[:-100])
    elif what == "tampered":
        content[1000] ^= 1
        model.write_bytes(content)
    elif what == "missing":
        (version / "libsilvertriton_ops.so").unlink()
    elif what == "malformed":
        (version / "manifest.json").write_text('{"format": 1}')
    elif what == "foreign":
        (version / "manifest.json").write_text('{"name": "something else"}')
    else:
        (version / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "/2/model.pt has "),
        ("tampered", "/2/model.pt does not have the SHA-256"),
        ("missing", "/2/libsilvertriton_ops.so is missing"),
        ("malformed", "/2/manifest.json: field name: Field required"),
        ("foreign", "/2/manifest.json has format None"),
        ("no manifest", "/2 holds no manifest.json"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "serve"])
def test_a_damaged_version_is_neither_shown_nor_served(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, what: str, message: str
) -> None:
    repository = Path(shutil.copytree(exported / "repository", tmp_path / "repository"))
    assert run("promote", "2", "--offline", "--repository", repository) == 0
    capsys.readouterr()
    damage(repository / "retrieval" / "2", what)
    there = listing(repository)
    assert run(command, "--repository", repository) == 1
    captured = capsys.readouterr()
    assert captured.err.split("error: ")[1].startswith(f"{repository}/retrieval")
    assert message in captured.err
    assert captured.out == ""
    assert listing(repository) == there  # not even a log


@pytest.mark.parametrize(
    ("source", "options", "code", "message"),
    [
        ("nowhere.npy", (), 1, "no such file"),
        ("bad.npy", (), 1, "bad.npy: the vector of item 1 has a NaN"),
        ("good.npy", ("--model", "a/b"), 1, "model name 'a/b': use letters, digits"),
        ("good.npy", ("--threads", "-1"), 2, "--threads"),
        ("good.npy", ("--instances", "0"), 2, "--instances"),
        ("good.npy", ("--instances", "65"), 2, "--instances"),
        ("good.npy", ("--repository", "good.npy"), 2, "is a file"),
        ("bad.yaml", (), 1, "bad.yaml, index.recall: got 7"),
    ],
)
def test_an_export_that_cannot_be_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("good.npy", np.eye(3))
    np.save("bad.npy", np.array([[1.0], [np.nan]]))
    Path("bad.yaml").write_text("name: x\nembeddings: {path: good.npy}\nindex: {recall: 7}\n")
    assert run("export", source, *options) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert listing(tmp_path) == ["bad.npy", "bad.yaml", "good.npy"]
