"""What runs inside the server: several instances map one copy of the index, and answer as one instance does."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import json_format, text_format
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack, to_dlpack
from tritonclient.grpc import model_config_pb2

from builder import ops
from builder.export.repository import _SERVED_CODE
from client.schema import Status
from tests.builder.artifacts import ask, export_vectors, neutral

ITEMS, DIMS = 40_000, 32  # 2.5 MB of float16 vectors, 1.25 MB of codes


def named(name: str, capsule: Any) -> tuple[str, np.ndarray]:
    """An output as the server's module takes it: it reads the memory as if contiguous."""
    tensor = from_dlpack(capsule)
    assert tensor.is_contiguous(), name
    return name, tensor.numpy()


def as_request(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A request as the server's module hands it over."""
    return {
        name: SimpleNamespace(to_dlpack=lambda t=tensor: to_dlpack(t), shape=lambda t=tensor: t.shape)
        for name, tensor in tensors.items()
    }


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """model.py as the server's stub imports it. What it changes of the process is put back."""
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.TritonModelException = RuntimeError
    backend.get_input_tensor_by_name = lambda request, name: request[name]
    backend.Tensor = SimpleNamespace(from_dlpack=named)
    backend.InferenceResponse = lambda output_tensors=(), error=None: error or dict(output_tensors)
    backend.TritonError = lambda message: f"error: {message}"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    ops.load()
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)  # a process takes the operators once
    spec = importlib.util.spec_from_file_location("model", _SERVED_CODE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    threads = torch.get_num_threads()
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    gc.unfreeze()


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vectors = np.random.default_rng(0).normal(size=(ITEMS, DIMS)).astype(np.float32)
    index = f"index: {{results: 10, clusters: 4, probes: 2, candidates: 64, code_dims: {DIMS}}}\n"
    return export_vectors(tmp_path_factory.mktemp("exported"), vectors, index)


def mapped(tensor: Tensor, path: Path) -> bool:
    """Whether the tensor's first and last byte lie where this process maps the file, for its own writing only."""
    first = tensor.untyped_storage().data_ptr()
    last = first + tensor.untyped_storage().nbytes() - 1
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        if start <= first and last < end:
            return fields[1] == "rw-p" and fields[-1] == str(path)
    return False


class Network(nn.Module):
    """Tensors of every kind that a model.pt may hold."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(600, 700, generator=generator).T)  # not contiguous
        self.register_buffer("unknown", torch.full((2**18,), float("nan"), dtype=torch.float64))
        self.register_buffer("one", torch.randint(2**31, (2**19,), generator=generator, dtype=torch.int32))
        self.register_buffer("other", self.one.flip(0))  # as many bytes
        self.register_buffer("part", self.one[: 2**18])  # a view
        self.register_buffer("flags", torch.rand(2**20 + 3, generator=generator) < 0.5)
        self.register_buffer("small", torch.ones(2**18 - 1))

    def forward(self) -> list[Tensor]:
        return [self.weight, self.unknown, self.one, self.other, self.part, self.flags, self.small]


def test_large_tensors_become_the_file_and_keep_their_values(served: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.script(Network()).save(str(path))
    own, network = torch.jit.load(str(path)), served.load_shared(str(path))
    expected = dict([*own.named_parameters(), *own.named_buffers()])
    found = dict([*network.named_parameters(), *network.named_buffers()])
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert mapped(tensor, path) == (name != "small"), name
        assert not mapped(expected[name], path), name
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (
            expected[name].dtype,
            expected[name].shape,
            expected[name].stride(),
        )
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)
    for one, other in zip(network(), own(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert mapped(network.weight, path)
    assert network.part.data_ptr() == network.one.data_ptr()
    content = path.read_bytes()
    with torch.no_grad():
        network.one.zero_()  # nothing does; if something did, it would be this process's alone
    assert path.read_bytes() == content


def test_what_the_file_does_not_hold_stays_as_it_is(served: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.script(Network()).save(str(path))
    network: Any = torch.jit.load(str(path))
    network.one[7] += 1
    changed = network.one.clone()
    served.share(network, str(path))
    assert torch.equal(network.one, changed)
    assert not mapped(network.one, path)
    assert mapped(network.other, path)


def test_one_process_loads_at_a_time_and_leaves_the_lock(
    served: ModuleType, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would hold a copy of its own at the same time."""
    path = version / "model.pt"
    loaded: list[object] = []
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: loaded.append(served.load_shared(str(path))))
        second.start()
        second.join(0.5)
        assert loaded == []
        fcntl.flock(file, fcntl.LOCK_UN)
        second.join(60)
        assert len(loaded) == 1
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def cannot(file: object, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", cannot)
    assert mapped(served.load_shared(str(path)).search.vectors, path)


def start(served: ModuleType, version: Path, instances: int, kind: str = "CPU") -> Any:
    """An instance, initialised as the server does it."""
    config = model_config_pb2.ModelConfig()
    text_format.Parse((version.parent / "config.pbtxt").read_text(), config)
    config.instance_group[0].count = instances
    model = served.TritonPythonModel()
    model.initialize(
        {
            "model_repository": str(version.parent),
            "model_version": version.name,
            "model_config": json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)),
            "model_instance_kind": kind,
            "model_instance_device_id": "1",
        }
    )
    return model


def test_instances_share_and_one_alone_does_not(served: ModuleType, version: Path) -> None:
    path = version / "model.pt"
    frozen = gc.get_freeze_count()
    alone, shared = start(served, version, 1), start(served, version, 3)
    assert gc.get_freeze_count() > frozen
    large = [name for name, tensor in alone.network.named_buffers() if tensor.nbytes >= served.SHARED_BYTES]
    assert large == ["search.codes", "search.vectors"]
    for model, names in ((alone, []), (shared, large)):
        assert [name for name, tensor in model.network.named_buffers() if mapped(tensor, path)] == names
    queries = torch.randn(6, DIMS, generator=torch.Generator().manual_seed(1))
    expected = ask(version, neutral(6, queries))
    parts = [neutral(len(part), part) for part in (queries[:1], queries[1:])]
    wrapped = [as_request(part) for part in parts]
    for model in (alone, shared):
        answers = model.execute(wrapped)
        assert [len(answer["item_ids"]) for answer in answers] == [1, 5]
        for name, tensor in zip(model.outputs, expected, strict=True):
            np.testing.assert_array_equal(np.concatenate([answer[name] for answer in answers]), tensor.numpy())


def test_a_gpu_that_cannot_serve_is_told_before_it_is_asked(
    served: ModuleType, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"^cuda:1 is asked for, but torch \S+ finds no CUDA device: install"):
        start(served, version, 1, "GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.silvertriton, "cuda_targets", lambda: "")
    with pytest.raises(RuntimeError, match=r"^cuda:1 is asked for, but .* compiled for CPUs alone: export it where"):
        start(served, version, 1, "GPU")


CUDA_ERROR = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript (most recent call last):
RuntimeError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (CUDA_ERROR, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("Traceback of TorchScript\nRuntimeError: CUDA out of memory.\n", "RuntimeError: CUDA out of memory."),
        ("", "RuntimeError"),
    ],
)
def test_of_an_error_the_line_that_tells_it_is_answered(served: ModuleType, message: str, line: str) -> None:
    model = served.TritonPythonModel()
    model.device = torch.device("cpu")

    def fails(requests: object) -> None:
        raise RuntimeError(message)

    model._answers = fails
    (answer,) = model.execute([None])
    assert answer.startswith(f"error: {line}")
    assert "\n" not in answer


def test_a_process_ends_when_its_gpu_is_lost_and_not_before(
    served: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = served.TritonPythonModel()
    model.device = torch.device("cuda:1")

    def fails(*_: object) -> None:
        raise RuntimeError(CUDA_ERROR)

    def ends(code: int) -> None:
        raise SystemExit(code)

    model._answers = fails
    monkeypatch.setattr(os, "_exit", ends)
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    assert len(model.execute([None, None])) == 2
    assert set(asked) == {model.device}
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(SystemExit, match="1"):
        model.execute([None, None])
    told = "error: cuda:1 is lost to this process: RuntimeError: CUDA error: an illegal memory access was encountered\n"
    assert capfd.readouterr().err == told


@pytest.mark.parametrize(("value", "seen"), [(None, "1"), ("0", "0")])
def test_torch_finds_huge_pages_asked_for_unless_the_environment_says_otherwise(
    tmp_path: Path, value: str | None, seen: str
) -> None:
    (tmp_path / "torch.py").write_text("import os\nprint(os.environ['THP_MEM_ALLOC_ENABLE'])\nraise SystemExit\n")
    (tmp_path / "triton_python_backend_utils.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("THP_MEM_ALLOC_ENABLE", None)
    if value is not None:
        environment["THP_MEM_ALLOC_ENABLE"] = value
    result = subprocess.run(
        [sys.executable, str(_SERVED_CODE)], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == seen


def test_a_ranking_model_holds_no_copy_of_what_the_retrieval_model_has(served: ModuleType, version: Path) -> None:
    ranking = version.parents[1] / "retrieval_rank" / version.name
    model = start(served, ranking, 1)
    buffers = dict(model.network.named_buffers())
    assert [name for name, tensor in buffers.items() if tensor.nbytes >= served.SHARED_BYTES] == ["vectors"]
    assert mapped(buffers["vectors"], version / "model.pt")
    query = torch.randn(2, DIMS, generator=torch.Generator().manual_seed(4))
    found, values, _, _, _, _ = ask(version, neutral(2, query))
    inputs = {"query": query, "items": found, "task_weights": torch.full((2, 1), float("nan"))}
    (answer,) = model.execute([as_request(inputs)])
    np.testing.assert_array_equal(answer["scores"], values.numpy())
    assert answer["known"].all()


def test_a_ranking_model_alone_maps_its_own_file(served: ModuleType, version: Path, tmp_path: Path) -> None:
    """As where the repository holds nothing else, or other bytes under that number."""
    home = Path(shutil.copytree(version.parents[1] / "retrieval_rank", tmp_path / "retrieval_rank"))
    for _ in range(2):
        model = start(served, home / version.name, 1)
        assert mapped(model.network.vectors, home / version.name / "model.pt")
        (tmp_path / "retrieval" / version.name).mkdir(parents=True, exist_ok=True)
        torch.jit.script(Network()).save(str(tmp_path / "retrieval" / version.name / "model.pt"))


def test_a_request_that_fails_leaves_those_batched_with_it_alone(served: ModuleType, version: Path) -> None:
    """One of 2^32 rows, which comes without that dimension, is refused; a filter of one word is its row's fault."""
    model = start(served, version, 1)
    queries = torch.randn(4, DIMS, generator=torch.Generator().manual_seed(2))
    good = [neutral(1, query[None]) for query in queries]
    flat = {name: tensor[0] for name, tensor in good[1].items()}
    short = {**good[2], "filter": torch.zeros((1, 1), dtype=torch.int64)}
    parts = [good[0], flat, short, good[3]]
    wrapped = [as_request(part) for part in parts]
    first, second, third, last = model.execute(wrapped)
    for answer, query in ((first, queries[:1]), (last, queries[3:])):
        expected = ask(version, neutral(1, query))
        for name, tensor in zip(model.outputs, expected, strict=True):
            np.testing.assert_array_equal(answer[name], tensor.numpy())
    assert second.startswith("error: RuntimeError: silvertriton::resolve_weights: task_weights: got rank 1")
    assert "\n" not in second
    assert third["status"].tolist() == [[Status.FILTER_MALFORMED]]
