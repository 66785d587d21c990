import numpy as np
import pytest
import torch

from builder.index.blocks import arrange, pack_codes, pack_mask, pack_rows, pack_vectors
from builder.index.projection import no_projection
from builder.index.quantize import quantize


def test_arrange_sorts_by_cluster_then_id_and_pads_clusters_to_blocks() -> None:
    labels = np.array([2, 0, 2, 0, 2], dtype=np.int32)
    ids = np.array([9, 8, 7, 6, 5])
    layout = arrange(labels, ids, clusters=4)
    assert layout.cluster_blocks.tolist() == [0, 1, 1, 2, 2]  # clusters 1 and 3 are empty
    assert layout.item_of_row[:3].tolist() == [3, 1, -1]
    assert layout.item_of_row[32:36].tolist() == [4, 2, 0, -1]
    assert layout.row_of_item.tolist() == [34, 1, 33, 0, 32]
    assert layout.blocks == 2


def test_arrange_fills_whole_blocks_without_padding() -> None:
    layout = arrange(np.zeros(64, dtype=np.int32), np.arange(64), clusters=1)
    assert layout.cluster_blocks.tolist() == [0, 2]
    assert layout.item_of_row.tolist() == list(range(64))


def test_pack_mask_puts_row_r_into_bit_r() -> None:
    bits = np.zeros(64, dtype=np.bool_)
    bits[[0, 5, 31, 33]] = True
    assert pack_mask(bits).view(np.uint32).tolist() == [1 | 1 << 5 | 1 << 31, 2]


def test_pack_codes_follows_the_documented_position() -> None:
    codes = torch.from_numpy(np.random.default_rng(1).integers(-127, 128, size=(64, 6))).to(torch.int8)
    packed = pack_codes(codes)
    assert packed.shape == (2, 2, 32, 4)
    for row in (0, 31, 32, 63):
        for component in range(6):
            assert packed[row // 32, component // 4, row % 32, component % 4] == codes[row, component]
    assert not packed[:, 1, :, 2:].any()  # past D


@pytest.mark.parametrize("dims", [0, 3])
def test_pack_vectors_reorders_in_chunks_and_zeroes_padding(monkeypatch: pytest.MonkeyPatch, dims: int) -> None:
    """`dims` 0: not projected."""
    monkeypatch.setattr("builder.index.blocks.ROWS_PER_CHUNK", 32)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(50, 5)).astype(np.float32)
    projection = torch.from_numpy(np.linalg.qr(rng.normal(size=(5, dims)))[0]).float() if dims else no_projection(5)
    layout = arrange(rng.integers(0, 3, size=50).astype(np.int32), np.arange(50), clusters=3)
    codes, scales, halves = pack_vectors(vectors, layout.item_of_row, projection)
    by_row = torch.zeros(len(layout.item_of_row), 5)
    by_row[torch.from_numpy(layout.row_of_item)] = torch.from_numpy(vectors)
    expected_codes, expected_scales, expected_halves = quantize(by_row @ projection if dims else by_row, by_row)
    assert torch.equal(codes, pack_codes(expected_codes))
    assert torch.equal(scales.flatten(), expected_scales)
    assert torch.equal(halves, expected_halves)
    assert not halves[torch.from_numpy(layout.item_of_row) < 0].any()


def test_pack_rows_holds_the_codes_and_the_scale_of_each_row() -> None:
    rng = np.random.default_rng(3)
    codes, scales = torch.from_numpy(rng.integers(-127, 128, size=(64, 6))).to(torch.int8), torch.rand(2, 32)
    rows = pack_rows(pack_codes(codes), scales, dims=24)
    assert (rows.shape, rows.dtype) == ((64, 4), torch.int32)
    assert not rows[:, 3].any()
    as_bytes = rows.view(torch.int8)
    assert torch.equal(as_bytes[:, :6], codes)
    assert not as_bytes[:, 6:8].any()
    assert torch.equal(rows[:, 2].contiguous().view(torch.float32), scales.flatten())


def test_codes_are_not_kept_twice_where_that_takes_more_than_a_byte_a_dim() -> None:
    codes, scales = torch.zeros(3, 2, 32, 4, dtype=torch.int8), torch.zeros(3, 32)
    assert [tuple(pack_rows(codes, scales, dims).shape) for dims in (24, 23)] == [(96, 4), (0, 4)]
