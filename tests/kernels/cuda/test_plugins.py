"""The plugins of TensorRT: their kernels agree with their definitions, and answer as the operators do, bit for bit.

TensorRT itself is not here; what it does with a plugin is written down in builder/export/plugins.py.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from builder import nvcc, oplib, ops
from builder.export.onnx_nodes import IN_NETWORK
from builder.export.plugins import PLUGINS, Plugin
from tests.kernels.arguments import arguments, catalogue, groups_of_rows
from tests.kernels.arguments import run as run_operator
from tests.kernels.catalogue import Items, random_columns, random_request
from tests.kernels.cuda import plugin_calls
from tests.kernels.reference import Limits, Request

pytestmark = pytest.mark.timeout(300)  # the first time, the plugins are compiled

POINTED = {"float": "float32", "double": "float64", "int8_t": "int8", "uint16_t": "float16"} | {
    "int32_t": "int32",
    "uint32_t": "int32",
    "int64_t": "int64",
}
BY_OPERATOR = pytest.mark.parametrize("plugin", PLUGINS.values(), ids=list(PLUGINS))


def sizes_and_numbers(plugin: Plugin) -> tuple[dict[str, int], dict[str, int]]:
    given: dict[str, Any] = all_arguments(plugin.operator, 3)
    shapes = {name: tuple(given[name].shape) for name in plugin.weights}
    sizes = {name: given[of].shape[axis] for name, (of, axis) in plugin.sizes.items()}
    return sizes, plugin.numbers(shapes, given)


def all_arguments(operator: str, batch: int, count: int = 300) -> dict[str, Any]:
    if operator != "neighbour_scores":
        return arguments(operator, count, batch)
    random, items = np.random.default_rng(1), catalogue(count)
    item_rows = items.index["item_rows"].numpy()
    history = random.choice(items.ids, (batch, 9))
    history[:, 4] = -1
    return {
        "history": torch.from_numpy(history),
        "rows": torch.from_numpy(np.stack([random.permutation(item_rows)[: count // 2] for _ in range(batch)])),
        "ids": items.index["ids"],
        "item_rows": items.index["item_rows"],
        "neighbours": torch.from_numpy(np.stack([random.permutation(item_rows)[:7] for _ in range(count)])),
        "weights": torch.from_numpy(random.random((count, 7), dtype=np.float32)),
        "most": 6,
    }


def test_every_operator_of_a_network_has_a_plugin() -> None:
    assert set(PLUGINS) == set(IN_NETWORK)
    assert {path.stem for path in oplib.PLUGINS.glob("*.cu")} == set(PLUGINS)
    ops.load()
    for name, plugin in PLUGINS.items():
        schema = getattr(torch.ops.silvertriton, name).default._schema
        assert [a.name for a in schema.arguments if str(a.type) == "Tensor"] == list(plugin.inputs)
        assert [result.name for result in schema.returns] == list(plugin.outputs)


@BY_OPERATOR
def test_the_kernel_is_declared_as_the_plugin_is_defined(plugin: Plugin) -> None:
    text = plugin_calls.source(plugin.operator).read_text(encoding="utf-8")
    found = re.search(rf"__launch_bounds__\(([\w:]+)\)\s+{plugin.entry}\((.*?)\) {{", text, re.DOTALL)
    assert found, f"no entry {plugin.entry}"
    threads = {"kThreads": 256, "kRequestThreads": 512}[found[1].split("::")[-1]]
    assert threads == plugin.threads
    declared = [re.fullmatch(r"(const )?([\w:]+)(\*?) (\w+)", " ".join(p.split())) for p in found[2].split(",")]
    parameters = [(m[1] or "", m[2], m[3], m[4]) for m in declared if m]
    assert len(parameters) == len(declared)
    _, numbers = sizes_and_numbers(plugin)
    inputs = [("const ", plugin.inputs[name], "*", name) for name in plugin.inputs]
    types = [(const, POINTED.get(kind, kind), star, name) for const, kind, star, name in parameters]
    assert types[: len(inputs)] == inputs
    rest = types[len(inputs) :]
    if numbers:
        assert rest.pop(0)[2:] == ("*", "numbers")
        structs = (oplib.PLUGINS / "numbers.h").read_text(encoding="utf-8")
        struct = parameters[len(inputs)][1].split("::")[-1]
        body = re.sub(r"//.*", "", structs[structs.index(f"struct {struct} {{") :].split("};")[0])
        members = [name.strip() for line in re.findall(r"int64_t ([^;]+);", body) for name in line.split(",")]
        assert members == list(numbers)
    assert rest[: len(plugin.sizes)] == [("", "int32", "", name) for name in plugin.sizes]
    outputs = [("", kind, "*") for kind, _ in plugin.results({**sizes_and_numbers(plugin)[0], **numbers})]
    assert [parameter[:3] for parameter in rest[len(plugin.sizes) :]] == outputs


@BY_OPERATOR
def test_its_ptx_takes_pointers_then_int32_then_pointers(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, nvcc.TARGETS[0])
    if nvcc.find_nvcc() is None:
        pytest.skip("there is no nvcc")
    ptx = plugin.ptx()
    assert ".target sm_80" in ptx
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)\)", ptx, re.DOTALL))
    given = re.findall(r"\.param \.(\w+)(?: \.ptr[\w. ]*)? \w+", entries[plugin.entry])
    sizes, numbers = sizes_and_numbers(plugin)
    outputs = plugin.results({**sizes, **numbers})
    assert given == ["u64"] * len(plugin.types(numbers)) + ["u32"] * len(sizes) + ["u64"] * len(outputs)
    assert f".maxntid {plugin.threads}" in ptx.replace(", 1, 1", "")
    assert ".extern" not in ptx  # nothing to link


@BY_OPERATOR
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_its_answers_are_those_of_the_operator(plugin: Plugin, batch: int) -> None:
    compare(plugin.operator, all_arguments(plugin.operator, batch), f"batch {batch}")


@pytest.mark.parametrize("seed", range(8))
def test_searches_with_filters_exclusions_faults_and_without(seed: int) -> None:
    random, generator = Random(seed), np.random.default_rng(seed)
    count, dims = random.choice([1, 40, 500]), random.choice([3, 8, 21])
    items = Items(
        generator.normal(size=(count, dims)),
        random_columns(random, count) if seed % 4 else [],
        seed=seed,
        clusters=random.choice([1, 5, 40]),
        code_dims=random.choice([0, 2]),
        reach=random.choice([[1], [1, 0.5, 0]]),
        row_codes=seed % 2 == 0,
    )
    most = random.choice([1, 30])
    limits = Limits(random.choice([0, 1]), random.choice([0, most]), most, random.choice([0, 3]))
    requests = [random_request(random, generator, items, most, 0.1) for _ in range(5)]
    requests.append(Request(items.queries(generator, 1)[0], (0, 0)))
    compare("search", items.arguments(requests, limits), f"seed {seed}")
    compare("search", items.arguments(requests[-1:], limits), f"seed {seed}, no filter and no exclusions")


@BY_OPERATOR
def test_anything_may_stand_in_a_request(plugin: Plugin) -> None:
    """TensorRT runs a plugin to time it while it builds, and says nothing of what it then gives it."""
    generator = np.random.default_rng(7)
    for share in (0.02, 1.0):
        given = all_arguments(plugin.operator, 3)
        for name in plugin.inputs:
            if name in plugin.weights:
                continue
            good = given[name].numpy()
            noise = np.frombuffer(generator.bytes(good.nbytes), good.dtype).reshape(good.shape)
            given[name] = torch.from_numpy(np.where(generator.random(good.shape) < share, noise, good))
        compare(plugin.operator, given, f"{share} of what a request says is noise")


@pytest.mark.parametrize("mmr", [1.0, 0.6])
@pytest.mark.parametrize("grouped", [False, True])
def test_rules_and_none(mmr: float, grouped: bool) -> None:
    given = all_arguments("select_diverse", 3)
    if mmr == 1.0:
        given["inverse_lengths"] = torch.empty(0)
    if not grouped:
        given.update(groups_of_rows([[]] * len(given["vectors"]), []))
    compare("select_diverse", {**given, "mmr": mmr}, f"mmr {mmr}, grouped {grouped}")


def test_many_candidates_fit_into_the_scratch_memory() -> None:
    generator = np.random.default_rng(3)
    for batch, count in ((1, 1), (2, 1025), (1, 2049)):
        values = torch.from_numpy(generator.normal(size=(batch, count)).astype(np.float32))
        given = {
            "values": values,
            "ids": torch.arange(batch * count).reshape(batch, count),
            "task_scores": torch.stack([values], 2),
            "status": torch.zeros(batch, dtype=torch.int32),
        }
        compare("select", {**given, "k": 5}, f"{count} candidates")
        diverse = all_arguments("select_diverse", batch)
        rows = torch.from_numpy(generator.integers(0, len(diverse["vectors"]), (batch, count), dtype=np.int32))
        compare("select_diverse", {**diverse, **given, "rows": rows, "k": 3}, f"{count} candidates")
        graph = all_arguments("neighbour_scores", batch, max(count, 300))
        graph["rows"] = graph["ids"].argsort()[None].int().expand(batch, -1)[:, -count:].contiguous()
        compare("neighbour_scores", graph, f"{count} candidates")


@BY_OPERATOR
def test_there_is_as_much_scratch_memory_as_a_kernel_lays_out(plugin: Plugin) -> None:
    random = Random(5)
    _, numbers = sizes_and_numbers(plugin)
    for _ in range(300):
        sizes = {name: random.choice([1, 2, random.randint(1, 3000)]) for name in plugin.sizes}
        for name in numbers:
            numbers[name] = random.choice([1, random.randint(1, 3000)])
        rows = plugin.results({**sizes, **numbers})[-1][1] if plugin.scratch else (0, 0)
        assert plugin_calls.scratch_bytes(plugin, sizes, numbers) <= 8 * rows[0] * rows[1], (sizes, numbers)


def compare(operator: str, given: dict[str, Any], note: str) -> None:
    expected = run_operator(operator, given)
    got = plugin_calls.run(operator, given)
    for name, mine, theirs in zip(PLUGINS[operator].outputs, got, expected, strict=True):
        if operator == "search" and mine.ndim == 2 and name != "stats":  # the CPU returns as many as were asked for
            assert (mine[:, theirs.shape[1] :] == (-torch.inf if name == "scores" else -1)).all(), f"{note}: {name}"
            mine = mine[:, : theirs.shape[1]]
        np.testing.assert_array_equal(bits(mine), bits(theirs), f"{note}: {name}")


def bits(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.contiguous().numpy()
    return array.view(np.int32) if array.dtype == np.float32 else array
