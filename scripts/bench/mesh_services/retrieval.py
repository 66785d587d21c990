"""The retrieval service: Faiss, and the filter inside it where it is asked for one.

python retrieval.py SETTINGS.json THREADS
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[3])]

from mesh_services.retriever import Retriever, searchers  # noqa: E402
from mesh_services.wire import pack, run, serve, unpack  # noqa: E402


async def start(file: str, threads: str) -> None:
    retriever = Retriever(Path(file).parent, json.loads(Path(file).read_text()))
    pool = searchers(int(threads))  # Faiss gives up the interpreter's lock while it searches
    loop = asyncio.get_running_loop()

    def answer(message: bytes) -> bytes:
        query, program, exclude, asked = unpack(message)
        return pack(*retriever.search(query, program, exclude, int(asked[1]), bool(asked[0])))

    async def search(message: bytes) -> bytes:
        return await loop.run_in_executor(pool, answer, message)

    nothing = np.zeros(2, np.int64)
    retriever.search(np.array(retriever.vectors[0]), nothing, nothing - 1, 100, False)  # the first one is slow
    await serve({"Retrieval": {"Search": search}})


if __name__ == "__main__":
    run(start, sys.argv[1:])
