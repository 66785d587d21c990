"""Versions change on the stock server while clients ask: no call fails, and every answer is wholly of one version."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from builder.cli.main import cli
from builder.errors import BuilderError
from builder.export.manifest import MANIFEST, hash_file
from builder.export.served import configured, rollout_lock
from builder.serving.control import ModelControl
from builder.serving.rollout import promote, roll_back, start_canary
from builder.serving.server import StockServer
from builder.serving.state import STATE_FILE
from client import ModelUnavailable, RetrievalClient
from client._serving import CANARY_REREAD
from tests.end_to_end.rolling import DIMS, FIRST, Load, Made, make

pytestmark = pytest.mark.server

MODEL = "retrieval"
BOTH = {MODEL: [1], f"{MODEL}_rank": [1]}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Made]]:
    """A repository of three versions; 2 filters by a feature more, all differ in results, 3 in its task."""
    folder = tmp_path_factory.mktemp("rollout")
    return folder / "repository", {
        number: make(folder / str(number), folder / "repository", number) for number in (1, 2, 3)
    }


@pytest.fixture
def repository(exported: tuple[Path, dict[int, Made]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[0], tmp_path / "repository"))


@pytest.fixture
def versions(exported: tuple[Path, dict[int, Made]]) -> dict[int, Made]:
    return exported[1]


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[StockServer]:
    with StockServer(repository, log=tmp_path / "server.log", state=repository / STATE_FILE) as server:
        yield server


@pytest.fixture
def control(server: StockServer) -> Iterator[ModelControl]:
    with ModelControl(server.url, server.admin_headers) as control:
        yield control


def served(repository: Path) -> int:
    found = configured(repository / MODEL)
    assert found is not None
    return found.version


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(result.exception, BuilderError):
        return 1, str(result.exception)
    return result.exit_code, result.output


@pytest.mark.slow
def test_no_call_fails_and_no_answer_is_mixed(
    repository: Path, server: StockServer, control: ModelControl, versions: dict[int, Made]
) -> None:
    """Promotion to another schema, rollback to a lower number, a canary that ends, one that is promoted."""
    with Load(server.url, versions, headers=server.admin_headers) as load:
        load.until(lambda version: version == 1)
        assert promote(repository, MODEL, 2, control) == 2
        load.until(lambda version: version == 2)
        assert roll_back(repository, MODEL, control) == (2, 1)
        load.until(lambda version: version == 1)

        assert start_canary(repository, MODEL, None, 0.3, control) == 3
        assert control.loaded() == {
            MODEL: [1],
            f"{MODEL}_rank": [1],
            f"{MODEL}_canary": [3],
            f"{MODEL}_canary_rank": [3],
        }
        load.until(lambda version: version == 3, calls=1)
        load.wait(CANARY_REREAD + 0.5)  # until every client has seen it
        first = len(load.done)
        load.until(lambda version: version == 1, calls=400)
        counts = Counter(version for _, _, version in load.done[first:])
        assert set(counts) == {1, 3}
        calls = counts[1] + counts[3]
        assert abs(counts[3] - 0.3 * calls) < 5 * (calls * 0.3 * 0.7) ** 0.5, counts  # 5 sigma: 1 in 2 million

        assert promote(repository, MODEL, 3, control) == 3
        assert control.loaded() == {MODEL: [3], f"{MODEL}_rank": [3]}
        first = len(load.done)
        load.until(lambda version: version == 3)
    assert (load.failed, load.mixed) == ([], [])
    assert {version for _, _, version in load.done} == {1, 2, 3}
    assert {version for at, _, version in load.done[first:] if at > load.done[first][0]} == {3}


@pytest.mark.slow
def test_a_canary_is_followed_pinned_kept_over_a_restart_and_ended(
    repository: Path, server: StockServer, control: ModelControl, versions: dict[int, Made]
) -> None:
    start_canary(repository, MODEL, 2, 0.5, control)
    query = np.ones(DIMS, np.float32)
    with RetrievalClient(server.url, timeout=10) as client:
        keys = {key: client.retrieve(query=query, key=key).version for key in range(40)}
        assert set(keys.values()) == {1, 2}
        items = [number * FIRST for number in versions]
        assert {key: client.rank(query=query, items=items, key=key).version for key in keys} == keys
    for number in (1, 2):
        with RetrievalClient(server.url, timeout=10, version=number) as client:
            result = client.retrieve(query=query)
            assert (result.version, int(result.item_ids[0]) // FIRST) == (number, number)
            assert client.rank(query=query, items=items).version == number
    with RetrievalClient(server.url, timeout=10, version=3) as client, pytest.raises(ModelUnavailable):
        client.retrieve(query=query)
    port = server.grpc_port
    server.stop()
    with (
        StockServer(repository, grpc_port=port, state=repository / STATE_FILE),
        RetrievalClient(server.url, timeout=10) as client,
    ):
        assert {key: client.retrieve(query=query, key=key).version for key in keys} == keys
        code, output = run("versions", "--repository", repository, "--json")
        assert code == 0, output
        rows = json.loads(output)["versions"]
        assert [(row["version"], row["role"]) for row in rows] == [(1, "served"), (2, "canary: 0.5"), (3, "")]
        assert run("rollback", "--repository", repository)[0] == 0
        assert json.loads(run("versions", "--repository", repository, "--json")[1])["server"] == BOTH
        assert {client.retrieve(query=query, key=key).version for key in keys} == {1}


def spoil(version: Path, model: str) -> None:
    """A version that passes its hashes and cannot be loaded, or, where `model` says so, only not answer."""
    code = version / "model.py"
    text = code.read_text()
    if model == "load":
        text = text.replace("        self.network.eval()\n", "        raise RuntimeError('a broken network')\n")
    else:
        text = text.replace("        return responses\n", "        raise RuntimeError('a broken network')\n")
    assert text != code.read_text()
    code.write_text(text)
    manifest = json.loads((version / MANIFEST).read_text())
    manifest["files"]["model.py"] = hash_file(code).model_dump()
    (version / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "where"), [("retrieval_rank", "load"), ("retrieval", "answer")])
def test_a_broken_version_is_refused_and_the_old_one_serves_on(
    repository: Path, server: StockServer, control: ModelControl, versions: dict[int, Made], model: str, where: str
) -> None:
    spoil(repository / model / "2", where)
    before = {path: path.read_bytes() for path in repository.glob("*/**/*.pbtxt")}
    with Load(server.url, versions, headers=server.admin_headers) as load:
        load.until(lambda version: version == 1)
        with pytest.raises(BuilderError, match="a broken network"):
            promote(repository, MODEL, 2, control)
        load.until(lambda version: version == 1)
    assert (load.failed, load.mixed) == ([], [])
    assert {version for _, _, version in load.done} == {1}
    assert {path: path.read_bytes() for path in repository.glob("*/**/*.pbtxt")} == before
    assert control.loaded() == BOTH
    assert not list(repository.glob("*_canary*"))


@pytest.mark.slow
def test_an_interrupted_promotion_is_told_and_set_right(
    repository: Path, server: StockServer, control: ModelControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it was killed when both configurations were written and one model had changed."""
    monkeypatch.setattr("builder.serving.rollout._load_beside", lambda *arguments: None)
    monkeypatch.setattr("builder.serving.rollout.restore", lambda configurations: None)
    monkeypatch.setattr(ModelControl, "load", lambda self, model, version: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        promote(repository, MODEL, 2, control)
    monkeypatch.undo()
    control.load(MODEL, 2)
    assert control.loaded() == {MODEL: [2], f"{MODEL}_rank": [1]}
    code, output = run("versions", "--repository", repository)
    assert code == 1
    assert "the server serves version 1 of retrieval_rank, the repository says version 2" in output
    assert "`builder promote 2` sets it right" in output
    assert promote(repository, MODEL, 2, control) == 2
    assert control.loaded() == {MODEL: [2], f"{MODEL}_rank": [2]}
    assert run("versions", "--repository", repository)[0] == 0
    assert roll_back(repository, MODEL, control) == (2, 1)  # what was served before is still known


def test_two_rollouts_at_once_and_no_server(repository: Path) -> None:
    with rollout_lock(repository):
        code, output = run("promote", "2", "--repository", repository, "--address", "127.0.0.1:9")
    assert code == 1
    assert "another promotion or rollback is under way" in output
    code, output = run("promote", "2", "--repository", repository)
    assert code == 1
    assert "no server of this repository runs on this host" in output
    code, output = run("promote", "2", "--repository", repository, "--address", "127.0.0.1:9")
    assert code == 1
    assert "no Triton Inference Server can be reached" in output
    assert served(repository) == 1
    assert not list(repository.glob("*_canary*"))
