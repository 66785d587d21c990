"""The forward pass of a step: divided among processes, compiled, in mixed precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from builder.config import Config, Training
from builder.data.dataset import Dataset, read_dataset
from builder.data.synthetic import synthetic
from builder.training import forward
from builder.training.batches import Batches
from builder.training.distributed import Group
from builder.training.forward import TrainingLoss, on_gpu, precision, prepared, with_dense_gradients
from builder.training.run import build_towers

CPU = torch.device("cpu")
NEGATIVES, HISTORY = 40, 20
GROUPED: dict[str, object] = {"task_groups": [["c", "a"], ["b"]]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Dataset]:
    path = synthetic(tmp_path_factory.mktemp("data"), users=60, items=120, seed=3)
    path.write_text(path.read_text() + "tasks: {a: true, b: true, c: true}\nrerank: {}\n")
    config = Config.load(path)
    dataset = read_dataset(config)
    labels = np.random.default_rng(0).random((len(dataset.train), 3)) < [0.5, 0.3, 0.2]
    return config, replace(dataset, train=replace(dataset.train, labels=labels))


def loss_of(made: tuple[Config, Dataset], **network: object) -> TrainingLoss:
    """The same weights every time."""
    config, dataset = made
    raw = config.model_dump()
    raw["network"] = {**raw["network"], "history": HISTORY, **network}
    torch.manual_seed(0)
    towers = build_towers(Config.model_validate(raw), dataset)
    return TrainingLoss(*towers, torch.rand(len(dataset.catalogue)) - 3, temperature=0.1)


def step(
    loss: TrainingLoss,
    made: tuple[Config, Dataset],
    group: Group,
    batch: int,
    wrapped: torch.nn.Module | None = None,
) -> float:
    """Loss of the share of `group`, through what wraps it; gradients are added to the weights."""
    dataset, history = made[1], loss.user_tower.history_length
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(len(dataset.train), generator=generator)[:batch]
    batches = Batches(dataset.train, dataset.user_columns, history=history, hide=0.3, hide_all=0.2)
    share = group.share(batch)
    of = batches.at(rows, generator, share).to(group.device)
    drawn = torch.randint(len(dataset.catalogue), (NEGATIVES,), generator=generator).to(group.device)
    forward = loss if wrapped is None else wrapped
    positions = torch.cat([of.items, drawn])
    found = forward(of.features, of.history, of.offsets, of.labels, positions, share.start, batch)
    found.backward()
    return float(found.detach())


@pytest.mark.parametrize(
    "network",
    [{}, {"pooling": "attention", "blocks": 2, "dropout": 0.0}, {"history": 0}, GROUPED],
    ids=["mean", "att", "none", "groups"],
)
@pytest.mark.parametrize(("batch", "size"), [(64, 2), (64, 3), (1, 2), (2, 5)])
def test_shares_add_up_to_the_whole(
    network: dict[str, object], batch: int, size: int, made: tuple[Config, Dataset]
) -> None:
    """Loss and gradients, also where a process has no example."""
    whole, divided = loss_of(made, **network), loss_of(made, **network)
    expected = step(whole, made, Group(CPU), batch)
    found = sum(step(divided, made, Group(CPU, rank, size), batch) for rank in range(size))
    assert found == pytest.approx(expected, rel=1e-5)
    pairs = list(zip(whole.parameters(), divided.parameters(), strict=True))
    assert len(pairs) > 4
    for one, other in pairs:
        assert one.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
    assert sum(float(one.grad.abs().sum()) for one, _ in pairs if one.grad is not None) > 0.1


def test_each_vector_learns_from_its_tasks(made: tuple[Config, Dataset]) -> None:
    """As many losses as groups, each over the examples that are positive for any of its tasks."""
    loss, labels = loss_of(made, **GROUPED), made[1].train.labels
    torch.nn.init.normal_(loss.user_tower.heads.weight, std=0.3)
    found = step(loss, made, Group(CPU), 64)
    gradient = loss.user_tower.heads.weight.grad
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[:64].numpy()
    total = 0.0
    for group, tasks in enumerate(([2, 0], [1])):
        alone = loss_of(made, **GROUPED)
        alone.load_state_dict(loss.state_dict())
        kept = np.zeros_like(labels)
        kept[:, tasks[0]] = labels[:, tasks].any(1)
        assert 5 < kept[rows].any(1).sum() < 59
        total += step(alone, (made[0], replace(made[1], train=replace(made[1].train, labels=kept))), Group(CPU), 64)
        of_group, others = (alone.user_tower.heads.weight.grad.chunk(2)[g] for g in (group, 1 - group))
        assert not others.any()
        torch.testing.assert_close(of_group, gradient.chunk(2)[group])
    assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # from within the tracer
@pytest.mark.parametrize("pooling", ["mean", "attention", "groups"])
def test_torch_compile_takes_it(pooling: str, made: tuple[Config, Dataset]) -> None:
    """Traced and differentiated as on a GPU, run without generated code."""
    network = {"mean": {}, "attention": {"pooling": "attention", "dropout": 0.0}, "groups": GROUPED}[pooling]
    plain, compiled = loss_of(made, **network), loss_of(made, **network)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", dynamic=True)
    for batch in (48, 31):  # of the last step there are fewer examples
        assert step(compiled, made, Group(CPU), batch) == pytest.approx(step(plain, made, Group(CPU), batch), rel=1e-5)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
    assert list(plain.state_dict()) == list(compiled.state_dict())


def test_mixed_precision_is_near(made: tuple[Config, Dataset]) -> None:
    """bfloat16 as a GPU would use it, here on the CPU: products lose digits, the loss and its gradients do not."""
    plain, mixed = loss_of(made), loss_of(made)
    expected = step(plain, made, Group(CPU), 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(mixed, made, Group(CPU), 64)
    assert found != expected
    assert found == pytest.approx(expected, rel=0.01)
    for one, other in zip(plain.parameters(), mixed.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert other.grad.dtype == torch.float32
        assert float((other.grad - one.grad).norm()) <= 0.05 * float(one.grad.norm())


def test_both_are_off_on_a_cpu_and_said_to_be(
    made: tuple[Config, Dataset], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Training(mixed_precision=True, compile=True)
    loss = loss_of(made)
    monkeypatch.setattr(loss, "compile", lambda **options: pytest.fail("compiled"))
    assert prepared(loss, settings, Group(CPU)) is loss
    with precision(settings, CPU):
        assert not torch.is_autocast_enabled("cpu")
    said = capsys.readouterr().err
    assert said == "training.compile is of GPUs: off on cpu\ntraining.mixed_precision is of GPUs: off on cpu\n"
    with precision(Training(), CPU):
        prepared(loss, Training(), Group(CPU))
    assert capsys.readouterr().err == ""
    assert on_gpu(torch.device("cuda", 1), "x")


@pytest.mark.parametrize("has", [True, False])
def test_mixed_precision_needs_a_gpu_with_bfloat16(
    has: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: (kind, dtype))
    found = precision(Training(mixed_precision=True), torch.device("cuda"))
    said = capsys.readouterr().err
    if has:
        assert found == ("cuda", torch.bfloat16)
        assert said == ""
    else:
        assert "training.mixed_precision is off: this GPU has no bfloat16" in said


def test_tables_of_several_processes_are_dense(made: tuple[Config, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.network.towers.SPARSE_ROWS", 100)
    sparse, dense = loss_of(made), loss_of(made)
    with_dense_gradients(dense)
    step(sparse, made, Group(CPU), 16)
    step(dense, made, Group(CPU), 16)
    table, other = sparse.item_tower.ids.weight.grad, dense.item_tower.ids.weight.grad
    assert table is not None
    assert other is not None
    assert table.is_sparse
    assert not other.is_sparse
    torch.testing.assert_close(table.to_dense(), other)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_on_a_gpu_both_are_near_what_a_cpu_computes(pooling: str, made: tuple[Config, Dataset]) -> None:
    network = {"pooling": "attention", "dropout": 0.0} if pooling == "attention" else {}
    settings, group = Training(mixed_precision=True, compile=True), Group(torch.device("cuda"))
    plain, fast = loss_of(made, **network), loss_of(made, **network)
    expected = [step(plain, made, Group(CPU), batch) for batch in (64, 31)]
    torch.compiler.reset()
    wrapped = prepared(fast, settings, group)
    with precision(settings, group.device):
        found = [step(fast, made, group, batch, wrapped) for batch in (64, 31)]
    assert found == pytest.approx(expected, rel=0.01)
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert other.grad.dtype == torch.float32
        assert float((other.grad.cpu() - one.grad).norm()) <= 0.05 * float(one.grad.norm())


def test_compiled_on_a_gpu(made: tuple[Config, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    loss = loss_of(made)
    monkeypatch.setattr(forward, "on_gpu", lambda device, setting: True)
    monkeypatch.setattr(loss, "compile", lambda **options: asked.append(options))
    prepared(loss, Training(compile=True), Group(CPU))
    prepared(loss, Training(), Group(CPU))
    assert asked == [{"dynamic": True}]
