"""The systems that scripts/bench/mesh compares, each started whole and stopped after: one address that takes requests.

`Unified` is the exported artifact on the stock server. `Mesh` is an orchestrator, a retrieval service, a filter service
where filters run after the search, and tower and scoring on the stock server. `Ensemble` has the same steps as a Triton
ensemble in one server, as Merlin Systems does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
from _bench import PYTHON, ROOT
from mesh_services.models import set_instances, write_ensemble

from builder.export.manifest import read_manifest
from builder.serving.server import StockServer

SERVICES = Path(__file__).parent / "mesh_services"
THREADS = 2  # of searches side by side
READY = 300.0


class Service:
    """A process of mesh_services/ that printed the port it listens on; it ends when its standard input does."""

    def __init__(self, name: str, *arguments: str) -> None:
        command = [str(PYTHON), str(SERVICES / f"{name}.py"), *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{name} ended with code {self.process.wait()} before it listened")
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class System:
    """What all three have: a context manager with an `address`; `pids` name the processes."""

    address: str

    def __init__(self, folder: Path, candidates: int) -> None:
        self.folder, self.candidates = folder, candidates
        self.described = json.loads((folder / "workload.json").read_text())
        self.artifact = folder / "unified" / "retrieval" / "1"
        self.whole = read_manifest(self.artifact).index.clusters  # probes that make a search look at everything
        self.stack = ExitStack()
        self.services: dict[str, int] = {}
        self.servers: list[StockServer] = []

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def serve(self, repository: Path) -> StockServer:
        before = set(psutil.Process().children())
        server = self.stack.enter_context(StockServer(repository, ready_timeout=READY))
        (self.services["tritonserver"],) = (child.pid for child in set(psutil.Process().children()) - before)
        return server

    def pids(self) -> dict[str, list[int]]:
        """By what they do: the services, the server, and each model's processes."""
        found = {name: [pid] for name, pid in self.services.items()}
        for stub in psutil.Process(self.services["tritonserver"]).children(recursive=True):
            models = [part for part in stub.cmdline() if part.endswith("model.py")]
            if models:
                found.setdefault(f"model {Path(models[0]).parts[-3]}", []).append(stub.pid)
        return found

    def stages(self) -> dict[str, Any]:
        """Seconds that the stages of requests took since the last call, where somebody counts them."""
        return {}


class Unified(System):
    def __init__(self, folder: Path, candidates: int, *, instances: int = 1) -> None:
        super().__init__(folder, candidates)
        self.instances = instances

    def __enter__(self) -> Unified:
        set_instances(self.folder / "unified", "retrieval", self.instances)
        self.address = self.serve(self.folder / "unified").url
        return self


class Mesh(System):
    """`inside`: Faiss asks the filter as it searches, else candidates are filtered after. `instances`: of scoring."""

    def __init__(self, folder: Path, candidates: int, *, instances: int = 1, inside: bool = True) -> None:
        super().__init__(folder, candidates)
        self.instances, self.inside = instances, inside

    def __enter__(self) -> Mesh:
        set_instances(self.folder / "mesh", "scoring", self.instances)
        server = self.serve(self.folder / "mesh")
        settings = self.folder / f"retrieval-{self.candidates}.json"
        retrieval = self.start("retrieval", str(settings), str(THREADS))
        config = {
            "models": server.url,
            "retrieval": retrieval.address,
            "filter": None if self.inside else self.start("filters", str(self.folder)).address,
            "users": self.described["users"],
            "candidates": self.candidates,
            "items": self.described["items"],
        }
        self.address = self.start("orchestrator", json.dumps(config)).address
        return self

    def start(self, name: str, *arguments: str) -> Service:
        service = self.stack.enter_context(Service(name, *arguments))
        self.services[name] = service.process.pid
        return service

    def stages(self) -> dict[str, Any]:
        with grpc.insecure_channel(self.address) as channel:
            return dict(json.loads(channel.unary_unary("/Orchestrator/Told")(b"")))


class Ensemble(System):
    def __init__(self, folder: Path, candidates: int, *, instances: int = 1) -> None:
        super().__init__(folder, candidates)
        self.instances = instances

    def __enter__(self) -> Ensemble:
        repository = self.folder / "ensemble"
        shutil.rmtree(repository, ignore_errors=True)
        for model in ("tower", "scoring"):
            shutil.copytree(self.folder / "mesh" / model, repository / model, copy_function=link)
        settings = (self.folder / f"retrieval-{self.candidates}.json").absolute()
        schema = read_manifest(self.artifact).read_schema()
        write_ensemble(repository, schema, settings, self.candidates, THREADS)
        set_instances(repository, "scoring", self.instances)
        self.address = self.serve(repository).url
        return self


def link(source: str, target: str) -> None:
    """Large files are linked, configurations copied, as they are changed."""
    if source.endswith(".pbtxt"):
        shutil.copyfile(source, target)
    else:
        Path(target).hardlink_to(source)


SYSTEMS: dict[str, type[System]] = {"mesh": Mesh, "ensemble": Ensemble, "unified": Unified}  # in this order
VARIANTS: dict[str, list[dict[str, Any]]] = {  # what each system may be started with; the quickest is measured
    "unified": [{"instances": 1}, {"instances": 2}],
    "mesh": [{"instances": 1}, {"instances": 2}, {"instances": 1, "inside": False}],
    "ensemble": [{"instances": 1}, {"instances": 2}],
}
