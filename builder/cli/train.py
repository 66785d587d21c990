"""`builder train`: towers from a retrieval.yaml."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder [runs/NAME].")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
def command(config: Path, out: Path | None, resume: bool) -> None:
    """Train user and item tower on the data that CONFIG, a retrieval.yaml, describes.

    Validation recall decides when to stop and which epoch is kept. The run folder holds the settings, the checkpoint
    and metrics.jsonl; a run that was interrupted goes on with --resume as if it had not been.

    \b
    While it trains:        tensorboard --logdir runs
    On several GPUs:        torchrun --nproc-per-node gpu -m builder train CONFIG
    """
    from builder.config import Config
    from builder.training.distributed import rank
    from builder.training.run import train

    settings = Config.load(config)
    run = train(settings, out or Path("runs") / settings.name, resume)
    if rank() == 0:
        click.echo(f"{run}\nexport it with: builder export {run}")
