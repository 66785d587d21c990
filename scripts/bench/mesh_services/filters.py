"""The filter service: Roaring bitmaps of all terms. Says how many items pass a filter, then which of some do.

python filters.py FOLDER
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
from pyroaring import BitMap

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[3])]

from mesh_services.sets import RoaringSets, evaluate  # noqa: E402
from mesh_services.wire import pack, run, serve, unpack  # noqa: E402

KEPT = 4096  # filters that wait for their candidates


async def start(folder: str) -> None:
    sets = RoaringSets(np.load(Path(folder) / "columns.npz"))
    waiting: OrderedDict[int, BitMap] = OrderedDict()
    number = 0

    async def count(message: bytes) -> bytes:
        """Program -> a number to refer to it, and how many items pass."""
        nonlocal number
        (program,) = unpack(message)
        passing = evaluate(program, sets)
        number += 1
        waiting[number] = passing
        if len(waiting) > KEPT:
            waiting.popitem(last=False)
        return pack(np.array([number, len(passing)], np.int64))

    async def check(message: bytes) -> bytes:
        """The number of a program, and positions -> 1 for those that pass."""
        asked, positions = unpack(message)
        passing = BitMap(positions[positions >= 0].astype(np.uint32)) & waiting[int(asked[0])]
        return pack(np.isin(positions, np.array(passing.to_array(), np.int64)).astype(np.uint8))

    await serve({"Filter": {"Count": count, "Check": check}})


if __name__ == "__main__":
    run(start, sys.argv[1:])
