"""A TCP relay that puts a server at a distance."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from contextlib import closing, contextmanager, suppress


@contextmanager
def distant(address: str, delay: float) -> Iterator[str]:
    """Another address of the server at `address`, what is sent from either side arriving `delay` seconds later."""
    host, port = address.rsplit(":", 1)

    async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with closing(sink), suppress(OSError):
            while data := await source.read(65536):
                await asyncio.sleep(delay)
                sink.write(data)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(forward(reader, there_writer), forward(there_reader, writer))

    async def serve(started: threading.Event, ports: list[int]) -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await server.serve_forever()

    loop, started, ports = asyncio.new_event_loop(), threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_until_cancelled(serve(started, ports))))
    thread.start()
    started.wait()
    try:
        yield f"127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join()
        loop.close()


async def _until_cancelled(work: Awaitable[None]) -> None:
    with suppress(asyncio.CancelledError):
        await work
