"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import client

PUBLIC = """
    TLS AccessDenied AllOf And Answer AnyOf AsyncRetrievalClient AsyncTransport ClientClosed Codec Condition
    ConnectionFailed Contract DeadlineExceeded DeviceArray Explanation F Feature FilterCost Hit InvalidValue
    ItemIn LimitExceeded ModelConfig ModelNotFound ModelUnavailable Not Or QueueFull Range Ranking Request RequestError
    Retrieval RetrievalClient Retry RowStatusError Rules Schema SchemaError SchemaMismatch ServerError SilverTritonError
    Stats Status Transport Unknown UnknownName Unsupported WrongServer compile_filter everything filter_cost item_in
    matches parse_filter
"""


def test_all_is_what_it_was_and_exists() -> None:
    assert client.__all__ == PUBLIC.split()
    assert all(hasattr(client, name) for name in client.__all__)


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_takes_neither_torch_nor_grpc() -> None:
    assert not _modules_after("import client") & {"torch", "grpc", "tritonclient", "builder"}


def test_a_client_takes_grpc_but_not_torch() -> None:
    modules = _modules_after("import client; client.RetrievalClient('localhost:1').close()")
    assert "grpc" in modules
    assert not modules & {"torch", "builder"}
