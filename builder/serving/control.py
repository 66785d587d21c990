"""A running server's model control: what it has loaded, loading, unloading, and one request as proof."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from builder.errors import BuilderError
from builder.serving.state import admin_headers, read_key, read_state
from client.options import TLS

LOAD_TIMEOUT = 600.0  # seconds until a model is given up
_UNLOAD_TIMEOUT = 120.0  # seconds for requests that a model has, and for the end of its processes
_ASK_TIMEOUT = 30.0  # seconds for any other call
_UNKNOWN_LENGTH = 8  # of a dimension that may be any
_DIRECT = [("grpc.enable_http_proxy", 0)]


def reach(repository: Path, address: str | None, key_file: Path | None, tls: TLS | None = None) -> ModelControl:
    """The server at `address`, or else the one that `builder serve` runs for a repository on this host.

    The key is that of the file, of the environment or of that server. Raises BuilderError if none is known.
    """
    key = read_key(key_file)
    if address is None:
        try:
            state = read_state(repository)
        except BuilderError as error:
            remedy = f"{error.remedy}\n  Of a server that runs otherwise, give the gRPC endpoint with --address."
            raise BuilderError(error.what, where=error.where, remedy=remedy) from error
        if state.url is None:
            raise BuilderError("the server has gRPC switched off", where=str(repository), remedy="Leave it on.")
        address, key = state.url, key or state.admin_key
    return ModelControl(address, admin_headers(key) if key else {}, tls)


class ModelControl:
    """Loads and unloads models of one server, over gRPC; a context manager.

    `address`: host:port. `headers`: sent with every call, such as the key of a restricted protocol. `tls`: how to
    encrypt; None: not at all. Every method raises `BuilderError` with the server's own reason, and a remedy where the
    server cannot be reached or refuses.
    """

    def __init__(self, address: str, headers: Mapping[str, str] | None = None, tls: TLS | None = None) -> None:
        self.address = address
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        credentials = None if tls is None else grpc.ssl_channel_credentials(*tls.read())
        self._client = triton.InferenceServerClient(address, creds=credentials, channel_args=_DIRECT)

    def __enter__(self) -> ModelControl:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def loaded(self) -> dict[str, list[int]]:
        """The versions that take requests, by model; models without one are left out."""
        found: dict[str, list[int]] = {}
        for entry in self._index():
            if entry.get("state") == "READY":
                found.setdefault(entry["name"], []).append(int(entry["version"]))
        return found

    def load(self, model: str, version: int) -> None:
        """Load a model as its configuration says, wait until that version takes requests, and prove it with a request.

        What it served before serves until then, and further on if this raises. What is being unloaded ends first.
        """
        try:
            self._await_unloaded()
            self._ask("load_model", model, client_timeout=LOAD_TIMEOUT)
            ends = time.monotonic() + _ASK_TIMEOUT
            while not self._ask("is_model_ready", model, str(version)):
                if time.monotonic() > ends:
                    raise BuilderError(f"the server loaded {model} but not version {version} of it", where=self.address)
                time.sleep(0.02)
        except BuilderError as error:
            raise BuilderError(f"cannot load version {version} of {model}: {error.what}", where=self.address,
                               remedy=error.remedy) from error  # fmt: skip
        self.prove(model, version)

    def unload(self, model: str) -> None:
        """Unload a model and wait until it has ended, once the requests that it has are answered.

        Nothing happens if it is not loaded.
        """
        self._ask("unload_model", model)
        self._await_unloaded()

    def prove(self, model: str, version: int) -> None:
        """Ask that version for an answer, with neutral tensors. Raises `BuilderError` unless its status is 0."""
        config = self._ask("get_model_config", model, str(version), as_json=True)["config"]
        inputs = []
        for tensor in config["input"]:
            dims = [_UNKNOWN_LENGTH if int(dim) < 0 else int(dim) for dim in tensor["dims"]]
            array = np.zeros((1, *dims), triton_to_np_dtype(tensor["data_type"].removeprefix("TYPE_")))
            inputs.append(triton.InferInput(tensor["name"], array.shape, tensor["data_type"].removeprefix("TYPE_")))
            inputs[-1].set_data_from_numpy(array)
        answer = self._ask("infer", model, inputs, str(version))
        status = answer.as_numpy("status")
        if status is None or status.ravel().tolist() != [0]:
            raise BuilderError(
                f"version {version} of {model} answers a neutral request with status {status}, expected 0",
                where=self.address,
            )

    def _await_unloaded(self) -> None:
        """Wait until no model, nor a version that another has replaced, is on its way out: two copies, not three."""
        ends = time.monotonic() + _UNLOAD_TIMEOUT
        while leaving := [entry for entry in self._index() if entry.get("state") == "UNLOADING"]:
            if time.monotonic() > ends:
                named = ", ".join(f"version {entry['version']} of {entry['name']}" for entry in leaving)
                raise BuilderError(
                    f"{named} was given up and has not ended within {_UNLOAD_TIMEOUT:.0f} s",
                    where=self.address,
                    remedy="Its process may hang: restart the server, then repeat the command.",
                )
            time.sleep(0.02)

    def _index(self) -> list[dict[str, str]]:
        models: list[dict[str, str]] = self._ask("get_model_repository_index", as_json=True).get("models", [])
        return models

    def _ask(self, method: str, *arguments: Any, client_timeout: float = _ASK_TIMEOUT, **options: Any) -> Any:
        try:
            return getattr(self._client, method)(
                *arguments, headers=self._headers, client_timeout=client_timeout, **options
            )
        except InferenceServerException as error:
            raise _failure(error, self.address) from error


def _failure(error: InferenceServerException, address: str) -> BuilderError:
    status, message = str(error.status()).removeprefix("StatusCode."), str(error.message())
    remedy = ""
    if "protocol is restricted" in message:
        remedy = "Give its key with --admin-key-file, or in SILVERTRITON_ADMIN_KEY."
    elif "explicit model load / unload is not allowed" in message:
        remedy = "Start the server with `builder serve`, or with --model-control-mode=explicit --load-model=*."
    elif status == "UNAVAILABLE":
        message = f"no Triton Inference Server can be reached: {message}"
        remedy = "Start it with `builder serve`, or give its gRPC port with --address; --tls where it is encrypted."
    return BuilderError(message, where=address, remedy=remedy)
