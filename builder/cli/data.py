"""`builder data`: datasets to try things on."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("name", type=click.Choice(["movielens-100k", "gowalla", "synthetic"]))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write [datasets/NAME].")
@click.option(
    "--data",
    "source",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that holds the published files; without it they are downloaded and verified.",
)
@click.option("--items", type=click.IntRange(min=100), default=20_000, show_default=True, help="Synthetic: items.")
@click.option("--users", type=click.IntRange(min=10), default=5_000, show_default=True, help="Synthetic: users.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Synthetic: seed.")
def command(name: str, out: Path | None, source: Path | None, items: int, users: int, seed: int) -> None:
    """Write the dataset NAME as Parquet files and the retrieval.yaml that describes them.

    \b
    movielens-100k   943 users, 1,682 films with genres, year and release date (GroupLens)
    gowalla          29,858 users, 40,981 places, the split of the literature (SNAP)
    synthetic        any size: power-law popularity, clustered taste, attributes that follow taste
    """
    from builder.data.public import gowalla, movielens_100k
    from builder.data.synthetic import synthetic

    out = out or Path("datasets") / name
    if name == "movielens-100k":
        config = movielens_100k(source, out)
    elif name == "gowalla":
        config = gowalla(source, out)
    else:
        config = synthetic(out, users=users, items=items, seed=seed)
    click.echo(f"{config}\ntrain it with: builder train {config}")
