"""Which version a model serves, as its configuration says it; rollouts as far as they go without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from builder import ops
from builder.errors import BuilderError
from builder.export.config import read_config
from builder.export.manifest import read_manifest
from builder.export.served import (
    Configured,
    configure,
    configured,
    place_canary,
    remove_canary,
    restore,
    rollout_lock,
    saved,
)
from builder.export.sources import read_source
from builder.export.tune import tune
from builder.serving.rollout import choose, state, tidy
from tests.builder.artifacts import GPU_CONFIGS, export_vectors, listing, run, version_listing

MODELS = ("retrieval", "retrieval_rank")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, of three and five dims."""
    folder = tmp_path_factory.mktemp("served")
    for dims in (3, 5):
        export_vectors(folder, np.eye(8, dims, dtype=np.float32) + 0.1)
    return folder / "repository"


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "repository"))


def dims(config: Path) -> int:
    (query,) = [tensor for tensor in read_config(config).input if tensor.name == "query"]
    return int(query.dims[0])


def test_the_first_version_is_served_and_an_export_changes_nothing(repository: Path) -> None:
    assert listing(repository) == version_listing(1, 2)
    for model in MODELS:
        home = repository / model
        assert configured(home) == Configured(1, None, None)
        for config in ("config.pbtxt", "configs/pytorch.pbtxt"):
            assert dims(home / config) == 3
            assert list(read_config(home / config).version_policy.specific.versions) == [1]
        for number, wide in ((1, 3), (2, 5)):
            for config in ("config.pbtxt", "pytorch.pbtxt"):
                assert dims(home / str(number) / config) == wide
                assert not read_config(home / str(number) / config).HasField("version_policy")


def test_a_chosen_version_brings_its_own_configuration(repository: Path) -> None:
    for number, wide, previous in ((2, 5, 1), (2, 5, 1), (1, 3, 2)):  # the same again forgets nothing
        assert choose(repository, "retrieval", number) == number
        for model in MODELS:
            assert configured(repository / model) == Configured(number, previous, None)
            snapshot = read_manifest(repository / model / str(number)).snapshot
            for config, backend in (("config.pbtxt", "python"), ("configs/pytorch.pbtxt", "pytorch")):
                read = read_config(repository / model / config)
                assert (read.name, read.backend, dims(repository / model / config)) == (model, backend, wide)
                assert read.parameters["snapshot"].string_value == snapshot
    assert choose(repository, "retrieval", None) == 2
    with pytest.raises(BuilderError, match=r"does not hold version 3 \(versions: 1, 2\)"):
        choose(repository, "retrieval", 3)


def test_a_damaged_version_is_not_chosen(repository: Path) -> None:
    (repository / "retrieval_rank" / "2" / "model.pt").write_bytes(b"half")
    before = {path: path.read_bytes() for path in repository.rglob("*.pbtxt")}
    with pytest.raises(BuilderError, match="truncated or changed"):
        choose(repository, "retrieval", 2)
    assert {path: path.read_bytes() for path in repository.rglob("*.pbtxt")} == before


def test_configurations_are_put_back(repository: Path) -> None:
    home = repository / "retrieval"
    before = saved(home)
    configure(home, home / "2", previous=1)
    assert saved(home) != before
    restore(before)
    assert saved(home) == before
    nowhere = repository / "nowhere"
    nothing = saved(nowhere)
    nowhere.mkdir()
    configure(nowhere, home / "2")
    restore(nothing)
    assert configured(nowhere) is None


def test_a_canary_is_the_same_files_under_another_name(repository: Path) -> None:
    there = listing(repository)
    home = place_canary(repository, "retrieval_canary", repository / "retrieval" / "2", 0.05)
    assert configured(home) == Configured(2, None, 0.05)
    assert read_config(home / "config.pbtxt").name == "retrieval_canary"
    assert (home / "2" / "model.pt").samefile(repository / "retrieval" / "2" / "model.pt")
    assert not (home / "2").readlink().is_absolute()  # it holds in a container as well
    assert state(repository, "retrieval").canary == Configured(2, None, 0.05)
    remove_canary(repository, "retrieval_canary", "retrieval")
    remove_canary(repository, "retrieval_canary", "retrieval")
    assert listing(repository) == there


def test_what_is_left_beside_for_nobody_goes_before_a_server_starts(repository: Path) -> None:
    there = listing(repository)
    for share, stays in ((0.0, False), (0.5, True)):
        place_canary(repository, "retrieval_canary", repository / "retrieval" / "2", share)
        place_canary(repository, "retrieval_canary_rank", repository / "retrieval_rank" / "2", None)
        tidy(repository)
        assert [name for name in ("retrieval_canary", "retrieval_canary_rank") if (repository / name).exists()] == (
            ["retrieval_canary", "retrieval_canary_rank"] if stays else []
        )
    shutil.rmtree(repository / "retrieval_canary")
    tidy(repository)
    assert [name for name in listing(repository) if name != ".rollout.lock"] == there


@pytest.mark.parametrize("parameter", ["previous", "share"])
def test_what_no_rollout_writes_is_told_and_mended(repository: Path, parameter: str) -> None:
    path = repository / "retrieval" / "config.pbtxt"
    with path.open("a") as file:
        file.write(f'parameters {{ key: "{parameter}" value {{ string_value: "one" }} }}\n')
    with pytest.raises(BuilderError, match=r"config.pbtxt: says what no rollout writes: .*'one'\n.* --offline"):
        state(repository, "retrieval")
    assert choose(repository, "retrieval", 1) == 1
    assert state(repository, "retrieval").served == Configured(1, None, None)


def test_one_rollout_at_a_time(repository: Path) -> None:
    with (
        rollout_lock(repository),
        pytest.raises(BuilderError, match="another promotion or rollback is under way\n  Wait until it ends"),
    ):
        choose(repository, "retrieval", 2)
    assert choose(repository, "retrieval", 2) == 2


def test_a_configuration_without_a_version_is_told_and_mended(repository: Path) -> None:
    path = repository / "retrieval" / "config.pbtxt"
    path.write_text('backend: "python"\n')
    with pytest.raises(BuilderError, match=r"names 0 versions, expected one in version_policy\n.* --offline"):
        state(repository, "retrieval")
    path.unlink()
    with pytest.raises(BuilderError, match=r"has no config.pbtxt\n.* --offline"):
        state(repository, "retrieval")
    assert choose(repository, "retrieval", 1) == 1
    assert state(repository, "retrieval").served == Configured(1, None, None)
    with pytest.raises(BuilderError, match="does not hold any version"):
        state(repository, "nowhere")


def test_versions_without_a_server(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choose(repository, "retrieval", 2)
    (repository / "retrieval" / "1" / "manifest.json").write_text("{}")
    assert run("versions", "--repository", repository, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["version"], row["role"]) for row in told["versions"]] == [(1, "served before"), (2, "served")]
    assert "has format None" in told["versions"][0]["fault"]
    assert told["versions"][1]["items"] == 8
    assert (told["server"], told["faults"]) == (None, [])
    assert run("versions", "--repository", repository) == 0
    assert "is not asked: no server of this repository runs on this host" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("promote", "2", "--share", "0.5", "--offline"), 2, "--share needs a server: leave out --offline"),
        (("promote", "2", "--share", "0"), 2, "--share"),
        (("promote", "2", "--share", "1.5"), 2, "--share"),
        (("promote", "0"), 2, "VERSION"),
        (("promote", "2"), 1, "--address"),
        (("rollback",), 1, "no server of this repository runs on this host"),
        (("promote", "2", "--address", "127.0.0.1:9"), 1, "no Triton Inference Server can be reached"),
    ],
)
def test_what_cannot_be_done_is_told(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = {path: path.read_bytes() for path in repository.rglob("*.pbtxt")}
    assert run(*arguments, "--repository", repository) == code
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in repository.rglob("*.pbtxt")} == before
    assert not list(repository.glob("*_canary*"))


@pytest.fixture
def on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions of three and five dims, exported with operators for GPUs, and a third of four dims without."""
    for wide, targets in ((3, "sm_90 compute_90"), (5, "sm_90 compute_90"), (4, "")):
        monkeypatch.setattr(ops, "cuda_targets", lambda targets=targets: targets)
        export_vectors(tmp_path, np.eye(8, wide, dtype=np.float32) + 0.1)
    return tmp_path / "repository"


def test_configurations_for_gpus_go_with_the_versions_that_have_them(on_gpus: Path) -> None:
    for model in MODELS:
        home = on_gpus / model
        found = {version: [name for name in GPU_CONFIGS if (home / version / name).exists()] for version in "123"}
        assert found == {"1": GPU_CONFIGS, "2": GPU_CONFIGS, "3": []}
    for number, wide in ((1, 3), (2, 5), (3, None), (1, 3)):
        choose(on_gpus, "retrieval", number)
        for model in MODELS:
            for name, backend in zip(GPU_CONFIGS, ("python", "pytorch"), strict=True):
                path = on_gpus / model / "configs" / name
                if wide is None:
                    assert not path.exists()
                    continue
                read = read_config(path)
                assert (read.name, read.backend, dims(path)) == (model, backend, wide)
                assert list(read.version_policy.specific.versions) == [number]
    canary = place_canary(on_gpus, "retrieval_canary", on_gpus / "retrieval" / "2", 0.05)
    assert [dims(canary / "configs" / name) for name in GPU_CONFIGS] == [5, 5]
    before = saved(canary)
    configure(canary, on_gpus / "retrieval" / "3")
    assert not any((canary / "configs" / name).exists() for name in GPU_CONFIGS)
    restore(before)
    assert [dims(canary / "configs" / name) for name in GPU_CONFIGS] == [5, 5]


def test_other_defaults_keep_the_configurations_for_gpus(
    on_gpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_source(tmp_path / "retrieval.yaml")
    tuned = tune(source, on_gpus, recall=0.5)
    assert not [name for name in GPU_CONFIGS if (tuned.version / name).exists()]
    monkeypatch.setattr(ops, "cuda_targets", lambda: "sm_90 compute_90")
    tuned = tune(source, on_gpus, recall=0.6)
    assert [name for name in GPU_CONFIGS if (tuned.version / name).exists()] == GPU_CONFIGS


def test_configurations_for_gpus_without_a_version_are_taken_over(on_gpus: Path) -> None:
    choose(on_gpus, "retrieval", 2)
    shutil.rmtree(on_gpus / "retrieval" / "3")
    home = on_gpus / "retrieval"
    for name in ("config.pbtxt", "pytorch.pbtxt", *GPU_CONFIGS):
        (home / "2" / name).rename(home / (name if name == "config.pbtxt" else f"configs/{name}"))
    tidy(on_gpus)
    assert configured(home) == Configured(2, None, None)
    assert [dims(home / folder / name) for folder in ("2", "configs") for name in GPU_CONFIGS] == [5] * 4


def earlier(repository: Path) -> None:
    """As a release wrote it whose versions had no configuration: that of the newest is the model's, and names none."""
    for model in MODELS:
        home = repository / model
        for name, config in (("config.pbtxt", "config.pbtxt"), ("pytorch.pbtxt", "configs/pytorch.pbtxt")):
            shutil.copyfile(home / "2" / name, home / config)
            for number in (1, 2):
                (home / str(number) / name).unlink()


def test_a_repository_of_an_earlier_release_is_taken_over(repository: Path) -> None:
    before = {
        (model, name): (repository / model / "2" / name).read_bytes()
        for model in MODELS
        for name in ("config.pbtxt", "pytorch.pbtxt")
    }
    earlier(repository)
    with pytest.raises(BuilderError, match=r"names 0 versions(.|\n)*builder promote VERSION --offline"):
        state(repository, "retrieval")
    tidy(repository)  # as `builder serve` does
    for model in MODELS:
        assert configured(repository / model) == Configured(2, None, None)
        assert dims(repository / model / "configs" / "pytorch.pbtxt") == 5
        for name in ("config.pbtxt", "pytorch.pbtxt"):
            assert (repository / model / "2" / name).read_bytes() == before[model, name]
    with pytest.raises(BuilderError, match=r"retrieval/1: has no configuration of its own(.|\n)*Export it again"):
        choose(repository, "retrieval", 1)
    assert configured(repository / "retrieval") == Configured(2, None, None)


def test_an_export_into_it_does_not_change_what_is_served(repository: Path, tmp_path: Path) -> None:
    earlier(repository)
    assert export_vectors(tmp_path, np.eye(8, 4, dtype=np.float32) + 0.1) == repository / "retrieval" / "3"
    for model in MODELS:
        assert configured(repository / model) == Configured(2, None, None)
        assert dims(repository / model / "config.pbtxt") == 5
    assert choose(repository, "retrieval", None) == 3


def test_a_configuration_of_no_version_is_not_taken_over(repository: Path) -> None:
    earlier(repository)
    shutil.rmtree(repository / "retrieval" / "2")
    before = (repository / "retrieval" / "config.pbtxt").read_bytes()
    with pytest.raises(BuilderError, match=r"is not of version 1, the newest(.|\n)*Export again"):
        choose(repository, "retrieval", 1)
    tidy(repository)  # whoever serves it so all the same may
    assert (repository / "retrieval" / "config.pbtxt").read_bytes() == before
