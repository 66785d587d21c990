"""`python -m client query`: answers and refusals, with nothing installed but the client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client import Schema
from client.__main__ import main
from client.testing import FakeServer
from tests.client.certificates import LOOPBACK, Authority

ROOT = Path(__file__).parents[2]
ITEMS = [
    {"item_id": 100 + i, "year": 1990 + i, "genres": ["Drama"] if i % 2 else ["War", "Drama"], "title_id": i}
    for i in range(12)
]


@pytest.fixture
def server(schema: Schema) -> FakeServer:
    return FakeServer(schema, ITEMS)


@pytest.fixture
def address(server: FakeServer) -> Iterator[str]:
    with server.serving() as address:
        yield address


@pytest.fixture
def ask(address: str, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["query", "--address", address, "--timeout", "20", *map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return run


def test_a_filter_as_text(ask: Any, server: FakeServer) -> None:
    condition = 'F.genres.all_of("War", "Drama") & (1992 <= F.year < 2000) | item_in([111])'
    user = ("--user", "user_id=42", "--user", "age=33.5", "--user", "gender=F=x")
    code, out, err = ask(*user, "--history", "5,6", "--filter", condition, "--exclude", "104", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert [hit["item_id"] for hit in answer["hits"]] == [102, 106, 108, 111]
    assert set(answer["hits"][0]["tasks"]) == {"click", "watch"}
    assert answer["stats"] == {"clusters_probed": 16, "rows_passing": 5, "rows_scanned": 5, "exact": True}
    inputs = server.calls[0].inputs
    assert (inputs["user_id"].item(), inputs["age"].item()) == (42, 33.5)
    assert inputs["history"][0, :2].tolist() == [5, 6]


def test_a_table(ask: Any) -> None:
    code, out, _ = ask("-k", 2, "--weight", "watch=0", "--probes", 3, "--candidates", 5)
    assert code == 0
    header, first, second, summary = out.splitlines()
    assert header.split() == ["item", "score", "click", "watch"]
    assert first.split() == ["1", "100", "1.0000", "1.0000", "1.0000"]
    assert second.split()[:2] == ["2", "101"]
    assert len({len(line) for line in (header, first, second)}) == 1
    assert summary.startswith("2 results in ")
    assert summary.endswith(" ms: 12 items pass, 12 scanned in 16 clusters, exact")
    assert len(ask()[1].splitlines()) == 12


def test_small_probabilities_keep_their_digits(schema: Schema, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(schema, ITEMS[:1], scores=[[0.25, 0.00012345]]).serving() as address:
        assert main(["query", "--address", address, "--timeout", "20", "--weight", "click=0"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "100", "0.0001234", "0.2500", "0.0001234"]


@pytest.mark.parametrize(("text", "value"), [("true", 1), ("False", 0), ("7", 7)])
def test_a_boolean_is_one_or_zero(ask: Any, server: FakeServer, text: str, value: int) -> None:
    assert ask("--user", f"user_id={text}")[0] == 0
    assert server.calls[0].inputs["user_id"].item() == value


def test_given_items(ask: Any) -> None:
    code, out, _ = ask("--rank", "105,7,102", "--json")
    answer = json.loads(out)
    assert (code, [hit["item_id"] for hit in answer["hits"]], answer["unknown"]) == (0, [102, 105], [7])
    lines = ask("--rank", "105,7,102", "-k", 1)[1].splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("1 items ranked in ")
    assert lines[-1].endswith(" ms; unknown: 7")


def test_an_item_explained(ask: Any) -> None:
    code, out, err = ask("--explain", 105, "--filter", "(F.year > 1996) | F.genres.any_of('War')", "-k", 3)
    failing = "(F.year > 1996) | (F.genres == 'War')"
    assert (code, err) == (0, "")
    assert out.startswith(
        f"Item 105 is not returned because it does not pass the filter: it fails {failing}. Besides, "
    )
    code, out, _ = ask("--explain", 105, "--filter", "(F.year > 1996) | F.genres.any_of('War')", "-k", 3, "--json")
    answer = json.loads(out)
    assert (answer["outcome"], answer["reasons"]) == ("filtered", ["filtered", "outranked"])
    assert answer["failing"] == [failing]
    assert answer["gap"] == pytest.approx(answer["kth_score"] - answer["score"])
    assert json.loads(ask("--explain", 101, "--json")[1])["position"] == 2


def test_version_and_headers_travel(ask: Any, server: FakeServer) -> None:
    assert ask("--model-version", 1, "--header", "X-Key=a=b", "--header", "other=c")[0] == 0
    (call,) = server.calls
    assert (call.version, call.headers["x-key"], call.headers["other"]) == ("1", "a=b", "c")
    code, _, err = ask("--model-version", 9)
    assert code == 1
    assert "of version 9; check its name" in err


def test_tls(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority("the authority")
    own = authority.issue("server", [LOOPBACK])
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    with server.serving(credentials=grpc.ssl_server_credentials([(own.key, own.certificate)])) as address:
        asked = ["query", "--address", address, "--timeout", "20"]
        assert main([*asked, "--ca", str(ca)]) == 0
        assert main([*asked, "--tls"]) == 1  # the system does not trust it
        assert main([*asked, "--ca", str(tmp_path / "none.pem")]) == 1
    assert "tls.ca" in capsys.readouterr().err


def test_mutual_tls(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority("the authority")
    of_server, own = authority.issue("server", [LOOPBACK]), authority.issue("client", [])
    for name, content in (("ca", authority.certificate), ("certificate", own.certificate), ("key", own.key)):
        (tmp_path / name).write_bytes(content)
    ca, certificate, key = ([f"--{name}", str(tmp_path / name)] for name in ("ca", "certificate", "key"))
    credentials = grpc.ssl_server_credentials([(of_server.key, of_server.certificate)], authority.certificate, True)
    with server.serving(credentials=credentials) as address:
        asked = ["query", "--address", address, "--timeout", "20"]
        assert main([*asked, *ca, *certificate, *key]) == 0
        assert main([*asked, *ca]) == 1
        assert main([*asked, *ca, *certificate]) == 1
    assert "certificate and key, expected both or neither" in capsys.readouterr().err


def test_an_own_vector(query_schema: Schema, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "query.npy"
    np.save(path, np.array([0, 1, 0, 0], np.float32))
    vectors = np.eye(4, dtype=np.float32)
    server = FakeServer(query_schema, [{"item_id": i} for i in range(4)], vectors=vectors)
    with server.serving() as address:
        assert main(["query", "--address", address, "--query", str(path), "--timeout", "20"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "1", "1.0000"]


def test_an_archive_is_no_vector(ask: Any, tmp_path: Path) -> None:
    path = tmp_path / "queries.npz"
    np.savez(path, a=np.ones(4))
    code, _, err = ask("--query", path)
    assert code == 2
    assert f"{path} is no .npy array, but an archive of several" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--filter", "F.yaer > 1"), 1, "error: unknown filter feature 'yaer'; did you mean 'year'?"),
        (("--filter", "(F.year > 1) & F.genres"), 1, "error: filter: 'F.genres' at character 16: expected a condition"),
        (("--filter", ""), 1, "error: filter: cannot be read at character 1: something is missing"),
        (("--filter", "F.year == 'x'"), 1, "filter on 'year': got 'x' (str), expected a number"),
        (("--user", "aeg=3"), 1, "unknown user feature 'aeg'; did you mean 'age'?"),
        (("--user", "age=old"), 2, "--user: age: got 'old', expected a number"),
        (("--user", "user_id=1.5"), 2, "--user: user_id: got '1.5', expected an integer"),
        (("--user", "age"), 2, "--user: got 'age', expected NAME=VALUE"),
        (("--weight", "watch=much"), 2, "--weight: watch: got 'much', expected a number"),
        (("--weight", "buy=1"), 1, "unknown task 'buy'"),
        (("--history", "1,b"), 2, "--history: got '1,b', expected item ids with commas between"),
        (("--rank", "1", "--filter", "F.year > 1"), 2, "--rank searches nothing: leave out --filter"),
        (("--rank", "1", "--explain", "1"), 2, "--rank searches nothing that --explain could explain"),
        (("--explain", "x"), 2, "--explain: invalid int value: 'x'"),
        (("-k", "0"), 2, "-k: got '0', expected a whole number above 0"),
        (("-k", "21"), 1, "k: got 21"),
        (("--header", "grpc-x=1"), 1, "headers: got 'grpc-x'"),
        (("--timeout", "soon"), 2, "--timeout: invalid float value: 'soon'"),
        (("--query", __file__), 2, "is no .npy array"),
        (("--model", "films"), 1, "no model 'films'"),
        (("--probs", "3"), 2, "unrecognized arguments: --probs 3"),
    ],
)
def test_what_is_wrong_is_said(ask: Any, arguments: tuple[str, ...], code: int, message: str) -> None:
    got, out, err = ask(*arguments)
    assert (got, out) == (code, "")
    assert message in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_without_a_traceback(address: str) -> None:
    command = [sys.executable, "-m", "client", "query", "--address", address, "--timeout", "20"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert (result.returncode, result.stderr) == (1, "error: the answer cannot be written: No space left on device\n")


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["ask"]) == 2
    assert main(["--help"]) == 0
    with pytest.raises(SystemExit) as end:
        main(["query", "--help"])
    assert not end.value.code
    out = capsys.readouterr().out
    assert "python -m client query --user user_id=42" in out
    assert "--model-version" in out


def without_extras(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS` where only the client's own dependencies can be imported."""
    code = "import runpy, sys\n"
    code += (
        "for name in ('click', 'rich', 'torch', 'pydantic', 'yaml', 'pyarrow', 'jinja2'): sys.modules[name] = None\n"
    )
    code += "sys.argv = sys.argv[1:]\nrunpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    folder = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)


def test_the_client_alone_is_enough(address: str) -> None:
    done = without_extras("client", "query", "--address", address, "--filter", "F.year >= 2001", "--timeout", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:2] == ["1", "111"]


def test_the_builder_without_its_extra_says_what_there_is() -> None:
    done = without_extras("builder", "query")
    assert done.returncode == 1
    assert done.stderr == (
        "error: the builder needs click: pip install 'silvertriton[builder]'\n"
        "With the client alone there is: python -m client query\n"
    )
