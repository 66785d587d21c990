"""Every block of code of docs/client.md and docs/filters.md, and of README.md, runs; addresses lead to fake servers."""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from client import AsyncRetrievalClient, Feature, RetrievalClient, Schema
from client.__main__ import main
from client.testing import FakeServer
from tests.client.certificates import LOOPBACK, Authority

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), flags=re.DOTALL)
ON_A_GPU = [
    block for block in BLOCKS if 'shared_memory="cuda:0"' in block
]  # tests/end_to_end/test_gpu_shared_memory.py
GUIDE = [block for block in BLOCKS if block not in ON_A_GPU]
FILTERS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "filters.md").read_text(), flags=re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
SCHEMA = Schema(
    name="movies",
    user_features=(
        Feature("user_id", "category", "integer"),
        Feature("age", "number"),
        Feature("gender", "category", "string"),
    ),
    item_features=(
        Feature("title_id", "category", "integer", filter=True),
        Feature("genres", "tags", "string", filter=True),
        Feature("year", "number", filter=True),
        Feature("released", "date", filter=True),
    ),
    tasks=("click", "watch"),
    history_length=50,
    query_dims=0,
    max_results=100,
    max_candidates=400,
    clusters=64,
)
ITEMS = [
    {"item_id": item, "title_id": item, "genres": [["Drama", "War", "Comedy"][item % 3]], "year": 1950 + item}
    for item in range(1, 70)
]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(SCHEMA, ITEMS)


@pytest.fixture
def addresses(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The addresses of the documentation and where they lead; the TLS files that it names stand in the folder."""
    monkeypatch.chdir(tmp_path)
    for kind in (RetrievalClient, AsyncRetrievalClient):  # a busy machine must not fail the test
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "timeout", 30.0)
    authority = Authority("the authority")
    own, clients = authority.issue("server", [LOOPBACK]), authority.issue("client", [])
    for name, text in (
        ("ca.pem", authority.certificate),
        ("client.pem", clients.certificate),
        ("client.key", clients.key),
    ):
        Path(name).write_bytes(text)
    credentials = grpc.ssl_server_credentials([(own.key, own.certificate)], authority.certificate, True)
    with ExitStack() as stack:
        plain = stack.enter_context(server.serving())
        yield {
            "localhost:8001": plain,
            "127.0.0.1:8001": plain,
            "10.0.0.1:8001": stack.enter_context(server.serving(credentials=credentials)),
            "10.0.0.2:8001": stack.enter_context(server.serving(credentials=credentials)),
        }


def run(block: str, addresses: dict[str, str], names: dict[str, Any]) -> None:
    for address, where in addresses.items():
        block = block.replace(f'"{address}"', f'"{where}"')
    block = re.sub(r"\btimeout=[0-9.]+", "timeout=30", block)
    code = compile(block, "<docs>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(code, names)
    if waiting is not None:
        asyncio.run(waiting)


def test_the_guide(addresses: dict[str, str], server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in GUIDE:
        run(block, addresses, names)
    printed = capsys.readouterr().out
    assert "user {'user_id': 'not a number'}: user feature 'user_id': got 'not a number'" in printed
    headers = [call.headers for call in server.calls if "traceparent" in call.headers]
    assert headers
    assert headers[0]["triton-grpc-protocol-inference-key"] == "..."
    assert sum(call.model == "retrieval_rank" for call in server.calls) == 2
    assert [result.count for result in names["results"]] == [69] * 3


def test_the_commands(addresses: dict[str, str], server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        server.replace(ITEMS)
    assert server.version == 3  # which one of them asks
    for line in COMMANDS:
        python, module, client, *arguments = shlex.split(line, comments=True)
        assert (python, module, client) == ("python", "-m", "client")
        if "--address" in arguments:
            arguments[arguments.index("--address") + 1] = addresses["10.0.0.1:8001"]
        else:
            arguments += ["--address", addresses["127.0.0.1:8001"]]
        assert main([*arguments, "--timeout", "30"]) == 0, line
    printed = capsys.readouterr().out
    assert "Item 7 is not returned because it is number 7" in printed
    assert '"version": 3' in printed
    assert [call.headers.get("triton-grpc-protocol-inference-key") for call in server.calls][-1] == "KEY"


def test_the_filters(addresses: dict[str, str]) -> None:
    names: dict[str, Any] = {}
    for block in FILTERS:
        run(block, addresses, names)


def test_the_readme(addresses: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for block in README:
        run(block, addresses, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    first = lines[0].split()
    assert int(first[0]) == 40  # of those that pass the one with the best score
    assert float(first[1]) > 0


def test_there_are_blocks() -> None:
    assert len(GUIDE) >= 9
    assert len(ON_A_GPU) == 1
    assert len(FILTERS) >= 1
    assert len(COMMANDS) >= 4
    assert len(README) == 1
