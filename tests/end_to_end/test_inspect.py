"""`builder inspect` on a real export."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from builder.cli.main import cli
from tests.end_to_end.conftest import Shop


def inspect(repository: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["inspect", "--repository", str(repository), *arguments], catch_exceptions=False)


def test_shows_an_item_as_it_was_in_the_table(repository: Path, shop: Shop) -> None:
    for item in shop.items[:10]:
        result = inspect(repository, "--item", str(item["sku"]), "--json")
        values = json.loads(result.stdout)
        assert values["colour"] == item["colour"]
        assert sorted(values["genres"]) == sorted(item["genres"])
        assert values["year"] == item["year"]
        assert values["title_id"] == values["item_id"] == item["sku"]
        assert (values["released"] is None) == (item["released"] is None)


def test_shows_schema_sizes_recall_and_hashes(repository: Path) -> None:
    manifest = json.loads(inspect(repository, "--json").stdout)
    assert manifest["index"]["items"] == 3000
    assert manifest["recall"]["measured"] >= manifest["recall"]["target"] == 0.99
    assert manifest["vocabularies"]["genres"] == ["Comedy", "Drama", "Noir", "Rare", "War"]
    assert set(manifest["files"]) == {"model.pt", "model.py", "libsilvertriton_ops.so"}
    text = inspect(repository).stdout
    assert "3,000 of 24 dims" in text
    assert manifest["files"]["model.pt"]["sha256"][:20] in text.replace("\n", "")
