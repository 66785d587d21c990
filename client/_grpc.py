"""The transports of production: Triton's gRPC protocol. Imported when a client connects, for grpc is slow to import."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from client._endpoints import device_number
from client._messages import SERVICE, closed, config_answer, config_request, failure, infer_answer, infer_request
from client._shared_memory import Slot, Slots, may_pass, not_registered, unregister_request
from client.errors import ClientClosed, SchemaMismatch, ServerError, SilverTritonError
from client.options import TLS, Compression
from client.transport import NO_HEADERS, Answer, Headers, ModelConfig

_COMPRESSION = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC would wait for up to two minutes before it looks again for a server that has been restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # what one attempt may take, handshakes of TLS over a distance included
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A pool of its own: two transports to one address are two connections.
    ("grpc.use_local_subchannel_pool", 1),
)
_THIS_HOST = re.compile(r"(localhost|127(\.[0-9]+){3}|\[::1\])(:|$)")
_NAMES = (
    "ModelInfer",
    "ModelConfig",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
)
_METHODS = {
    name: (
        getattr(service_pb2, f"{name}Request").SerializeToString,
        getattr(service_pb2, f"{name}Response").FromString,
    )
    for name in _NAMES
}
_UNREGISTER_TIMEOUT = 1.0  # seconds


class GrpcTransport:
    """`Transport` over one gRPC channel, which connects on the first call and reconnects by itself."""

    def __init__(
        self,
        address: str,
        *,
        tls: TLS | None = None,
        compression: Compression | None = None,
        shared_memory: bool | str = False,
    ) -> None:
        self._address = address
        self._closed = False
        self._slots = Slots(device_number(shared_memory)) if shared_memory else None
        self._key = NO_HEADERS  # the headers that registered a slot, for closing: the protocol may be restricted
        self._started: set[Any] = set()  # calls under way: one that nobody refers to is cancelled by grpc
        options, credentials = _channel_settings(address, tls)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options, _COMPRESSION[compression])
        else:
            self._channel = grpc.secure_channel(address, credentials, options, _COMPRESSION[compression])
        self._methods = _methods(self._channel)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        *,
        version: str = "",
        headers: Headers = NO_HEADERS,
    ) -> Answer:
        """See `Transport.infer`."""
        if self._slots is not None:
            return self._infer_shared(self._slots, model, inputs, timeout, version, headers)
        request = infer_request(model, version, inputs)
        response = self._called("ModelInfer", request, model, timeout, headers)
        return infer_answer(response, f"{model!r} at {self._address}")

    def model_config(
        self, model: str, timeout: float, *, version: str = "", headers: Headers = NO_HEADERS
    ) -> ModelConfig:
        """See `Transport.model_config`."""
        return config_answer(self._called("ModelConfig", config_request(model, version), model, timeout, headers))

    def start(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        *,
        version: str = "",
        headers: Headers = NO_HEADERS,
        done: Callable[[], None],
    ) -> PendingCall:
        """`infer` without waiting; `done` is called, from another thread, when there is a result or a failure."""
        request = infer_request(model, version, inputs)
        try:
            call = self._methods["ModelInfer"].future(request, timeout, _metadata(headers))
        except ValueError as error:  # on a closed channel
            raise closed() from error
        self._started.add(call)
        call.add_done_callback(self._started.discard)
        call.add_done_callback(lambda _: done())
        return PendingCall(call, f"{model!r} at {self._address}", lambda error: self._failure(error, model, timeout))

    def close(self) -> None:
        """Close the channel; calls in progress end with `ClientClosed`."""
        if self._slots is not None:
            self._forget(self._slots.kind, self._slots.close(), self._key)
        self._closed = True
        self._channel.close()

    def _infer_shared(
        self,
        slots: Slots,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        version: str,
        headers: Headers,
    ) -> Answer:
        ends = monotonic() + timeout
        again = True
        while True:
            slot, request, shapes = slots.take(model, version, inputs)
            try:
                if not slot.registered:
                    self._register(slots.kind, slot, model, ends - monotonic(), headers)
                    self._forget(slots.kind, slots.forgettable(), headers)
                response = self._called("ModelInfer", request, model, max(1e-3, ends - monotonic()), headers)
                answer = slots.answer(slot, request, response, shapes, f"{model!r} at {self._address}")
                if answer is not None:
                    return answer
            except BaseException as error:
                slots.retire(slot, shapes)
                if not again or not may_pass(error):
                    raise
                again = False
                slots.forget_registrations()

    def _register(self, kind: str, slot: Slot, model: str, timeout: float, headers: Headers) -> None:
        request = slot.memory.register_request()
        try:
            self._called(f"{kind}SharedMemoryRegister", request, model, max(1e-3, timeout), headers)
        except (ServerError, SchemaMismatch) as error:
            raise not_registered(error, kind) from error
        slot.registered, self._key = True, headers

    def _forget(self, kind: str, slots: list[Slot], headers: Headers) -> None:
        for slot in slots:
            request = unregister_request(kind, slot.name)
            with contextlib.suppress(SilverTritonError):  # it may be gone, with all it knew
                self._called(f"{kind}SharedMemoryUnregister", request, slot.name, _UNREGISTER_TIMEOUT, headers)

    def _called(self, method: str, request: Any, model: str, timeout: float, headers: Headers) -> Any:
        try:
            return self._methods[method](request, timeout, _metadata(headers))
        except grpc.RpcError as error:
            raise self._failure(error, model, timeout) from error
        except ValueError as error:  # on a closed channel
            if self._closed:
                raise closed() from error
            raise

    def _failure(self, error: grpc.RpcError, model: str, timeout: float) -> SilverTritonError:
        return _failure(error, model, self._address, timeout, self._closed)


class PendingCall:
    """A request on its way, see `client._hedging.Pending`."""

    def __init__(self, call: Any, server: str, failure: Callable[[grpc.RpcError], SilverTritonError]) -> None:
        self._call, self._server, self._failure = call, server, failure

    def result(self) -> Answer:
        """The answer, waited for; raises what `Transport.infer` raises."""
        try:
            response = self._call.result()
        except grpc.RpcError as error:
            raise self._failure(error) from error
        except grpc.FutureCancelledError as error:
            raise closed() from error
        return infer_answer(response, self._server)


class AsyncGrpcTransport:
    """`AsyncTransport` over one gRPC channel. It belongs to the event loop of its first call."""

    def __init__(
        self,
        address: str,
        *,
        tls: TLS | None = None,
        compression: Compression | None = None,
        shared_memory: bool | str = False,
    ) -> None:
        self._address = address
        self._closed = False
        self._slots = Slots(device_number(shared_memory)) if shared_memory else None
        self._key = NO_HEADERS  # the headers that registered a slot, for closing: the protocol may be restricted
        self._settings = _channel_settings(address, tls)
        self._compression = _COMPRESSION[compression]
        self._channel: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the channel's

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        *,
        version: str = "",
        headers: Headers = NO_HEADERS,
    ) -> Answer:
        """See `Transport.infer`."""
        if self._slots is not None:
            return await self._infer_shared(self._slots, model, inputs, timeout, version, headers)
        request = infer_request(model, version, inputs)
        response = await self._called("ModelInfer", request, model, timeout, headers)
        return infer_answer(response, f"{model!r} at {self._address}")

    async def model_config(
        self, model: str, timeout: float, *, version: str = "", headers: Headers = NO_HEADERS
    ) -> ModelConfig:
        """See `Transport.model_config`."""
        request = config_request(model, version)
        return config_answer(await self._called("ModelConfig", request, model, timeout, headers))

    async def close(self) -> None:
        """Close the channel; calls in progress end with `ClientClosed`."""
        if self._slots is not None:
            known = self._slots.close()
            if self._channel is not None:
                await self._forget(self._slots.kind, known, self._key)
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def _infer_shared(
        self,
        slots: Slots,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        version: str,
        headers: Headers,
    ) -> Answer:
        ends = monotonic() + timeout
        again = True
        while True:
            slot, request, shapes = slots.take(model, version, inputs)
            try:
                if not slot.registered:
                    await self._register(slots.kind, slot, model, ends - monotonic(), headers)
                    await self._forget(slots.kind, slots.forgettable(), headers)
                response = await self._called("ModelInfer", request, model, max(1e-3, ends - monotonic()), headers)
                answer = slots.answer(slot, request, response, shapes, f"{model!r} at {self._address}")
                if answer is not None:
                    return answer
            except BaseException as error:
                slots.retire(slot, shapes)
                if not again or not may_pass(error):
                    raise
                again = False
                slots.forget_registrations()

    async def _register(self, kind: str, slot: Slot, model: str, timeout: float, headers: Headers) -> None:
        request = slot.memory.register_request()
        try:
            await self._called(f"{kind}SharedMemoryRegister", request, model, max(1e-3, timeout), headers)
        except (ServerError, SchemaMismatch) as error:
            raise not_registered(error, kind) from error
        slot.registered, self._key = True, headers

    async def _forget(self, kind: str, slots: list[Slot], headers: Headers) -> None:
        for slot in slots:
            request = unregister_request(kind, slot.name)
            with contextlib.suppress(SilverTritonError):  # it may be gone, with all it knew
                await self._called(f"{kind}SharedMemoryUnregister", request, slot.name, _UNREGISTER_TIMEOUT, headers)

    async def _called(self, method: str, request: Any, model: str, timeout: float, headers: Headers) -> Any:
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._loop = loop
            self._connect()
        elif self._loop is not loop:
            raise ClientClosed("the client belongs to the event loop of its first call; make one in each loop")
        try:
            return await self._methods[method](request, timeout=timeout, metadata=_metadata(headers))
        except grpc.RpcError as error:
            raise _failure(error, model, self._address, timeout, self._closed) from error
        except asyncio.CancelledError:
            if self._closed and not _is_cancelled():  # by close(), not by whoever waits
                raise closed() from None
            raise
        except grpc.aio.UsageError as error:  # on a closed channel
            raise closed() from error

    def _connect(self) -> None:
        options, credentials = self._settings
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(self._address, options, self._compression)
        else:
            self._channel = grpc.aio.secure_channel(self._address, credentials, options, self._compression)
        self._methods = _methods(self._channel)


def _is_cancelled() -> bool:
    """Whether the running task was asked to end. Python 3.10 cannot tell."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0


def _methods(channel: Any) -> dict[str, Any]:
    return {name: channel.unary_unary(SERVICE + name, *codecs) for name, codecs in _METHODS.items()}


def _channel_settings(address: str, tls: TLS | None) -> tuple[tuple[tuple[str, Any], ...], Any]:
    options: tuple[tuple[str, Any], ...] = _OPTIONS
    if _THIS_HOST.match(address):  # no proxy of the environment can reach what listens on loopback here
        options = (*options, ("grpc.enable_http_proxy", 0))
    if tls is None:
        return options, None
    if tls.server_name is not None:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return options, grpc.ssl_channel_credentials(*tls.read())


def _metadata(headers: Headers) -> tuple[tuple[str, str], ...] | None:
    return tuple(headers.items()) if headers else None


def _failure(error: Any, model: str, address: str, timeout: float, is_closed: bool) -> SilverTritonError:
    if is_closed:
        return closed()
    return failure(error.code().name, error.details() or "", model, address, timeout)
