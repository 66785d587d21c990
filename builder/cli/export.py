"""`builder export`: a trained run or given vectors become the next version in a model repository."""

from __future__ import annotations

import json
from pathlib import Path

import click

from builder.cli.options import json_option, model_option, repository_option
from builder.export.formats import FORMATS, Format
from builder.progress import stages

ENOUGH = 0.95  # of the results, that rules may leave on average without a warning


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@repository_option
@model_option
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Torch threads of an instance."
)
@click.option(
    "--instances",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Requests computed at once, on one copy of the index.",
)
@click.option(
    "--rank/--no-rank", default=True, show_default=True, help="Export MODEL_rank too, which scores given items."
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    help="Write this beside model.pt; may be given several times.",
)
@json_option
def command(
    source: Path,
    repository: Path,
    model: str,
    threads: int,
    instances: int,
    rank: bool,
    formats: tuple[Format, ...],
    as_json: bool,
) -> None:
    """Export SOURCE as the next version of a model.

    \b
    SOURCE is one of
      a run folder written by `builder train`
      a retrieval.yaml with `embeddings:` (vectors of your own, item attributes, a user tower or none)
      a .npy array of item vectors [N, D]; row numbers are item ids, requests carry the query vector

    \b
    Writes REPOSITORY/MODEL/VERSION/{model.pt, model.py, libsilvertriton_ops.so, manifest.json} with its configurations,
    and the same for MODEL_rank. A version appears whole or not at all. The first one is served; another one is by
    `builder promote`.

    \b
    --format onnx adds model.onnx: the network with the operators as nodes of the domain silvertriton.
    --format onnx-plain adds plain.onnx: in operators of ONNX alone, with exact search.
    --format tensorrt adds model.plan: a TensorRT plan with the operators in it; it needs TensorRT, nvcc and a GPU.
    --format tensorrt-plain adds model.plan: the plan of the plain network; it needs TensorRT and a GPU.
    """
    from builder import ops
    from builder.export.artifact import export
    from builder.export.manifest import read_manifest
    from builder.export.served import configured
    from builder.export.sources import read_source

    with stages() as step:
        version = export(
            read_source(source),
            repository,
            model=model,
            rank=rank,
            formats=formats,
            threads=threads,
            instances=instances,
            step=step,
        )
    manifest = read_manifest(version)
    recall, index = manifest.recall, manifest.index
    if as_json:
        click.echo(json.dumps({"version": str(version), "recall": recall.model_dump(), "index": index.model_dump()}))
        return
    click.echo(
        f"{version}: {index.items:,} items, {index.clusters:,} clusters, {index.mean_probes:,.1f} probed by default: "
        f"recall@{recall.at} {recall.measured:.4f} over {recall.queries} queries ({recall.source})"
    )
    targets = ops.cuda_targets() or "none, see docs/gpu.md"
    click.echo(f"operators for the CPU; for CUDA: {targets}")
    if (served := configured(version.parent)) and served.version != int(version.name):
        click.echo(f"version {served.version} is served; serve this one with: builder promote {version.name}", err=True)
    wanted = manifest.read_schema().max_results
    if index.mean_results is not None and index.mean_results < ENOUGH * wanted:
        click.echo(
            f"warning: the rules of diversity leave {index.mean_results:,.1f} of {wanted:,} results on average; "
            "raise index.candidates, or let the rules pass more",
            err=True,
        )
    if recall.measured < recall.target:
        click.echo(f"warning: below the target of {recall.target}; raise index.probes or index.candidates", err=True)
