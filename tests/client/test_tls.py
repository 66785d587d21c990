"""TLS and mutual TLS against a real gRPC server, with certificates made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from client import TLS, ConnectionFailed, F, InvalidValue, Schema
from client.testing import FakeServer
from tests.client.certificates import ELSEWHERE, LOOPBACK, Authority, Certified
from tests.client.distant import distant
from tests.client.shells import SHELLS


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("the authority")


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority("the authority")  # of the same name, which proves nothing


@pytest.fixture(params=["sync", "async"])
def shell(request: pytest.FixtureRequest) -> Any:
    return SHELLS[request.param]


@pytest.fixture
def server(schema: Schema) -> FakeServer:
    return FakeServer(schema, [{"item_id": 7, "year": 1990}, {"item_id": 9, "year": 2000}])


def credentials(server: Certified, clients: Authority | None = None) -> Any:
    """Of a server; `clients`: who must have signed those of its clients."""
    return grpc.ssl_server_credentials(
        [(server.key, server.certificate)], clients and clients.certificate, clients is not None
    )


def assert_answers(shell: Any, address: str, tls: TLS) -> None:
    with shell(address, timeout=20, tls=tls) as client:
        assert client.retrieve(filter=F.year > 1995).item_ids.tolist() == [9]


def assert_refused(shell: Any, address: str, tls: TLS | None, server: FakeServer) -> None:
    with shell(address, timeout=20, tls=tls, retry=None) as client, pytest.raises(ConnectionFailed, match="tls="):
        client.retrieve()
    assert server.calls == []


def test_tls(shell: Any, server: FakeServer, authority: Authority, tmp_path: Path) -> None:
    with server.serving(credentials=credentials(authority.issue("server", [LOOPBACK]))) as address:
        assert_answers(shell, address, TLS(ca=authority.certificate))
        (tmp_path / "ca.pem").write_bytes(authority.certificate)
        assert_answers(shell, address, TLS(ca=tmp_path / "ca.pem"))
        assert_answers(shell, address, TLS(ca=str(tmp_path / "ca.pem")))


def test_a_server_certified_by_somebody_else_is_refused(
    shell: Any, server: FakeServer, authority: Authority, stranger: Authority
) -> None:
    with server.serving(credentials=credentials(stranger.issue("server", [LOOPBACK]))) as address:
        assert_refused(shell, address, TLS(ca=authority.certificate), server)
        assert_refused(shell, address, TLS(), server)  # what gRPC trusts by itself


def test_a_certificate_for_another_host_is_refused_unless_named(
    shell: Any, server: FakeServer, authority: Authority
) -> None:
    with server.serving(credentials=credentials(authority.issue("server", [ELSEWHERE]))) as address:
        assert_refused(shell, address, TLS(ca=authority.certificate), server)
        assert_refused(shell, address, TLS(ca=authority.certificate, server_name="other.internal"), server)
        assert_answers(shell, address, TLS(ca=authority.certificate, server_name="triton.internal"))


def test_an_expired_certificate_is_refused(shell: Any, server: FakeServer, authority: Authority) -> None:
    expired = authority.issue("server", [LOOPBACK], expired=True)
    with server.serving(credentials=credentials(expired)) as address:
        assert_refused(shell, address, TLS(ca=authority.certificate), server)


def test_without_tls_nothing_is_answered(shell: Any, server: FakeServer, authority: Authority) -> None:
    with server.serving(credentials=credentials(authority.issue("server", [LOOPBACK]))) as address:
        assert_refused(shell, address, None, server)
    with server.serving() as address:  # and the reverse
        assert_refused(shell, address, TLS(ca=authority.certificate), server)


def test_mutual_tls(shell: Any, server: FakeServer, authority: Authority, stranger: Authority) -> None:
    own = authority.issue("client", [])
    with server.serving(credentials=credentials(authority.issue("server", [LOOPBACK]), authority)) as address:
        assert_answers(shell, address, TLS(authority.certificate, own.certificate, own.key))
        server.calls.clear()
        assert_refused(shell, address, TLS(authority.certificate), server)
        wrong = stranger.issue("client", [])
        assert_refused(shell, address, TLS(authority.certificate, wrong.certificate, wrong.key), server)
        old = authority.issue("client", [], expired=True)
        assert_refused(shell, address, TLS(authority.certificate, old.certificate, old.key), server)


def test_a_distant_server_has_time_for_its_handshake(shell: Any, server: FakeServer, authority: Authority) -> None:
    with (
        server.serving(credentials=credentials(authority.issue("server", [LOOPBACK]))) as address,
        distant(address, 0.1) as far,
        shell(far, timeout=20, tls=TLS(ca=authority.certificate), retry=None) as client,
    ):
        assert client.retrieve(filter=F.year > 1995).item_ids.tolist() == [9]


def test_hedging_and_headers_over_tls(shell: Any, server: FakeServer, authority: Authority) -> None:
    tls = TLS(ca=authority.certificate)
    with (
        server.serving(credentials=credentials(authority.issue("server", [LOOPBACK]))) as address,
        shell(address, timeout=20, tls=tls, hedge=0.0, headers={"key": "secret"}) as client,
    ):
        assert client.retrieve().count == 2
    assert server.calls[0].headers["key"] == "secret"


@pytest.mark.parametrize("wrong", [{"certificate": b"-----BEGIN "}, {"key": b"-----BEGIN "}])
def test_certificate_and_key_go_together(wrong: dict[str, bytes]) -> None:
    with pytest.raises(InvalidValue, match="expected both or neither"):
        TLS(**wrong)


def test_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"tls\.ca .*none\.pem: cannot be read: No such file"):
        TLS(ca=tmp_path / "none.pem")
    (tmp_path / "der").write_bytes(b"\x30\x82")
    with pytest.raises(InvalidValue, match=r"tls\.ca .*der: is not PEM"):
        TLS(ca=tmp_path / "der")


def test_a_key_is_not_shown(authority: Authority) -> None:
    own = authority.issue("client", [])
    assert "PRIVATE" not in repr(TLS(authority.certificate, own.certificate, own.key))
