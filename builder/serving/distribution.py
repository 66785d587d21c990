"""Finds the stock tritonserver binary and lays out the backend directory it needs.

The PyPI wheel `nvidia-pytriton` carries tritonserver, its Python backend and one backend stub for each Python version.
The backend looks for its stub beside itself, so a directory of links puts the stub of this interpreter there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError


@dataclass(frozen=True)
class Distribution:
    """`binary`: the tritonserver executable. `libraries`: what it and its stub need on LD_LIBRARY_PATH."""

    binary: Path
    python_backend: Path
    stub: Path
    libraries: tuple[Path, ...]

    def write_backend_directory(self, directory: Path) -> Path:
        """Create `directory` for `--backend-directory`: the Python backend, this interpreter's stub beside it."""
        backend = directory / "python"
        backend.mkdir(parents=True)
        for source in (*self.python_backend.iterdir(), self.stub):
            if source.name != "__pycache__":
                (backend / source.name).symlink_to(source)
        return directory

    def environment(self) -> dict[str, str]:
        """The environment of the server process: this interpreter's packages for the stub, its libraries for both.

        torch's own threads are left to the model, which sets them from its configuration.
        """
        environment = dict(os.environ)
        paths = [str(path) for path in self.libraries]
        if inherited := environment.get("LD_LIBRARY_PATH"):
            paths.append(inherited)
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
        # The stub runs an isolated interpreter, which reads no PYTHONPATH and takes its packages from the first python3
        # on PATH. The link in a virtual environment is not followed: it is what leads to the environment's packages.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        return environment


def find_distribution() -> Distribution:
    """Find the server of the installed wheel. Raises `BuilderError` with the remedy when a piece is missing."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise BuilderError(
            f"the embedded server runs on Linux x86-64 only, this is {sys.platform} {os.uname().machine}; "
            "serve the model repository with docker compose instead"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise BuilderError(f"the stock server is not installed; run: {_install_command()}")
    package = Path(next(iter(spec.submodule_search_locations)))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    libpython = sysconfig.get_config_var("LIBDIR")
    distribution = Distribution(
        binary=package / "tritonserver" / "bin" / "tritonserver",
        python_backend=package / "tritonserver" / "backends" / "python",
        stub=package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub",
        libraries=(package.parent / "nvidia_pytriton.libs", *([Path(libpython)] if libpython else [])),
    )
    for piece in (distribution.binary, distribution.python_backend, distribution.stub):
        if not piece.exists():
            raise BuilderError(f"the installed nvidia-pytriton lacks {piece}; reinstall it: {_install_command()}")
    _require_libpython(version, distribution.libraries)
    return distribution


def _install_command() -> str:
    if sys.version_info >= (3, 13):
        return "pip install --no-deps 'nvidia-pytriton>=0.7,<0.8'"
    return "pip install 'silvertriton[server]'"


def _require_libpython(version: str, libraries: tuple[Path, ...]) -> None:
    """The stub is linked against the shared libpython, which some Pythons come without."""
    name = f"libpython{version}.so.1.0"
    system = [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib"), Path("/lib/x86_64-linux-gnu")]
    if not any((directory / name).exists() for directory in (*libraries, *system)):
        raise BuilderError(
            f"{name} was not found, which the server's Python backend needs; install it "
            f"(Debian and Ubuntu: apt-get install libpython{version}) or use a Python built with --enable-shared"
        )
