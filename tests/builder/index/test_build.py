import numpy as np
import torch

from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn
from builder.index.build import build_index
from client.hashing import UNKNOWN_KEY
from client.schema import Feature


def test_every_item_is_found_in_its_row_with_its_vector_and_values() -> None:
    rng = np.random.default_rng(0)
    items, dims = 300, 10
    vectors = rng.normal(size=(items, dims)).astype(np.float32)
    ids = rng.permutation(10_000)[:items].astype(np.int64)
    colours = rng.integers(0, 9, size=items)
    colours[5] = UNKNOWN_KEY
    sizes = rng.integers(0, 4, size=items)
    tags = [np.sort(rng.choice(20, size=size, replace=False)) for size in sizes]
    prices = np.where(rng.random(items) < 0.1, np.nan, rng.normal(size=items))
    columns = [
        CategoryColumn(Feature("colour", "category", "integer", filter=True), colours),
        TagsColumn(Feature("genres", "tags", "integer"), np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(tags)),
        NumberColumn(Feature("price", "number"), prices),
    ]
    index = build_index(vectors, ids, columns, clusters=4, seed=0)

    assert index.clusters == 4
    assert index.ids[index.item_rows.long()].tolist() == sorted(ids.tolist())
    assert int((index.ids >= 0).sum()) == items
    valid = np.unpackbits(index.valid.numpy().view(np.uint8), bitorder="little").astype(bool)
    assert np.array_equal(valid, index.ids.numpy() >= 0)
    forward = index.forward
    for row in np.flatnonzero(valid):
        item = int(np.flatnonzero(ids == int(index.ids[row]))[0])
        decoded = index.vectors[row].float() * index.scales.flatten()[row]
        torch.testing.assert_close(decoded, torch.from_numpy(vectors[item]), rtol=0, atol=2e-3)
        code = int(forward["colour.codes"][row])
        assert (UNKNOWN_KEY if code == 0 else int(forward["colour.keys"][code - 1])) == colours[item]
        first, last = forward["genres.offsets"][row : row + 2].tolist()
        assert forward["genres.keys"][forward["genres.codes"][first:last].long() - 1].tolist() == tags[item].tolist()
        price = float(forward["price.values"][row])
        assert price == prices[item] or (np.isnan(price) and np.isnan(prices[item]))
    assert index.row_codes.shape == (0, 4)  # all 10 dims are coded: both copies would take 28 bytes a row
    assert index.filters.feature_terms.tolist()[-1] == len(index.filters.term_keys)
    assert len(index.filters.feature_terms) == 2  # only `colour` filters
