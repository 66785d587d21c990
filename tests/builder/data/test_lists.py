import numpy as np
import pytest

from builder.data.lists import Lists, offsets_of, ranges


@pytest.mark.parametrize("seed", range(5))
def test_against_python_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain = [list(rng.integers(0, 100, rng.integers(0, 6))) for _ in range(20)]
    lists = Lists(np.cumsum([0, *map(len, plain)]), np.array([v for values in plain for v in values], np.int32))
    assert [list(lists[i]) for i in range(len(lists))] == plain
    assert list(lists.lengths) == [len(values) for values in plain]
    assert list(lists.owners) == [i for i, values in enumerate(plain) for _ in values]
    chosen = rng.integers(0, 20, 7)
    taken = lists.take(chosen)
    assert [list(taken[i]) for i in range(7)] == [plain[i] for i in chosen]
    padded = lists.padded(3)
    assert padded.dtype == np.int32
    assert padded.tolist() == [[-1] * (3 - len(values[-3:])) + values[-3:] for values in plain]
    starts = rng.integers(0, 50, 8)
    ends = starts + rng.integers(0, 4, 8)
    flat, offsets = ranges(starts, ends)
    assert flat.tolist() == [v for start, end in zip(starts, ends, strict=True) for v in range(start, end)]
    assert offsets.tolist() == np.cumsum([0, *(ends - starts)]).tolist()


def test_no_lists() -> None:
    none = Lists(np.zeros(1, np.int64), np.empty(0, np.int32))
    assert len(none) == 0
    assert none.padded(4).shape == (0, 4)
    assert none.take(np.empty(0, np.int64)).offsets.tolist() == [0]


def test_offsets_of() -> None:
    assert offsets_of(np.array([0, 0, 3]), 5).tolist() == [0, 2, 2, 2, 3, 3]
