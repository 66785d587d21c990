"""Mutual TLS of the stock server, HTTP switched off: who may ask, and the command line through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from builder.cli.main import cli
from builder.serving.server import StockServer
from client import TLS, ConnectionFailed, RetrievalClient
from tests.client.certificates import LOOPBACK, Authority
from tests.end_to_end.conftest import Shop

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("the authority")


@pytest.fixture(scope="module")
def files(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    of_server, own = authority.issue("server", [LOOPBACK]), authority.issue("client", [])
    for name, content in {
        "ca": authority.certificate,
        "server": of_server.certificate,
        "server-key": of_server.key,
        "certificate": own.certificate,
        "key": own.key,
    }.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    options = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={files / 'server'}",
        f"--grpc-server-key={files / 'server-key'}",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-root-cert={files / 'ca'}",
    ]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with StockServer(repository, log=log, http_port=None, options=options) as server:
        yield server


def test_clients_with_a_certificate_of_the_authority_are_answered(server: StockServer, files: Path, shop: Shop) -> None:
    tls = TLS(files / "ca", files / "certificate", files / "key")
    every = [True] * len(shop.ids)
    for options in ({}, {"shared_memory": True, "headers": server.admin_headers}, {"hedge": 0.0}):
        with RetrievalClient(server.url, tls=tls, timeout=10, **options) as client:
            result = client.retrieve(query=shop.queries[0], k=5, probes=client.schema.clusters)
        assert result.item_ids.tolist() == shop.exact(shop.queries[0], every, 5)


def test_all_others_are_refused(server: StockServer, authority: Authority, shop: Shop) -> None:
    own, stranger = authority.issue("client", []), Authority("the authority")
    of_stranger, old = stranger.issue("client", []), authority.issue("client", [], expired=True)
    for tls in (
        None,
        TLS(authority.certificate),
        TLS(authority.certificate, of_stranger.certificate, of_stranger.key),
        TLS(authority.certificate, old.certificate, old.key),
        TLS(stranger.certificate, own.certificate, own.key),
        TLS(None, own.certificate, own.key),
    ):
        with RetrievalClient(server.url, tls=tls, timeout=10, retry=None) as client, pytest.raises(ConnectionFailed):
            client.retrieve(query=shop.queries[0])


def test_commands_that_administer(server: StockServer, files: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(server.admin_key)

    def versions(*options: str) -> Result:
        asked = ["versions", "--repository", str(repository), "--json", "--address", server.url]
        return CliRunner().invoke(cli, [*asked, "--admin-key-file", str(tmp_path / "key"), *options])

    options = [f"--{name}={files / name}" for name in ("ca", "certificate", "key")]
    served = versions(*options)
    assert served.exit_code == 0, served.output
    assert json.loads(served.output)["server"] == {"retrieval": [1], "retrieval_rank": [1]}
    assert json.loads(versions(options[0]).output)["server"] is None
    assert json.loads(versions().output)["server"] is None
