"""The `builder` command, and `python -m builder`."""

import sys


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        from builder.cli.main import main as run
    except ModuleNotFoundError as missing:
        if missing.name in (None, "builder", "client"):
            raise
        sys.exit(
            f"error: the builder needs {missing.name}: pip install 'silvertriton[builder]'\n"
            "With the client alone there is: python -m client query"
        )
    run()


if __name__ == "__main__":
    main()
