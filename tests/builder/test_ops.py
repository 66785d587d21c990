"""Loading the operators, and their use from TorchScript and torch.export."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from builder import oplib, ops

OPERATORS = [
    "filter_rows",
    "search",
    "rescore",
    "resolve_weights",
    "select",
    "select_diverse",
    "force_instruction_set",
    "instruction_set",
]


@pytest.fixture(autouse=True)
def operators() -> None:
    ops.load()
    ops.load()


class Rescore(nn.Module):
    """A model that calls an operator as the network does."""

    def forward(self, query: Tensor, vectors: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
        return torch.ops.silvertriton.rescore(query, vectors, scales, rows) + 1


INPUTS = (torch.ones(2, 3), torch.ones(32, 3).half(), torch.full((1, 32), 0.5), torch.tensor([[0, -1]] * 2).int())
EXPECTED = [[2.5, float("-inf")]] * 2


@pytest.mark.parametrize("operator", OPERATORS)
def test_wrappers_have_the_arguments_of_their_schemas(operator: str) -> None:
    schema = getattr(torch.ops.silvertriton, operator).default._schema
    signature = inspect.signature(getattr(ops, operator))
    assert [argument.name for argument in schema.arguments] == list(signature.parameters)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted() -> None:
    assert torch.jit.script(Rescore())(*INPUTS).tolist() == EXPECTED
    assert (torch.jit.script(ops.rescore)(*INPUTS) + 1).tolist() == EXPECTED


def test_exported_with_a_dynamic_batch() -> None:
    batch = torch.export.Dim("batch")
    shapes = {"query": {0: batch}, "vectors": None, "scales": None, "rows": {0: batch}}
    program = torch.export.export(Rescore(), INPUTS, dynamic_shapes=shapes)
    query, vectors, scales, rows = INPUTS
    result = program.module()(query.repeat(3, 1), vectors, scales, rows.repeat(3, 1))
    assert result.tolist() == EXPECTED * 3


def test_operators_that_are_already_loaded_are_used() -> None:
    """As in a process with the library preloaded: a second copy must not be loaded, it could not register."""
    code = (
        "import torch, builder.oplib\n"
        f"torch.ops.load_library({str(oplib.library_path())!r})\n"
        "from builder import ops\n"
        "ops.library_path = None\n"
        "ops.load()\n"
        "print(ops.instruction_set())\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() in ("portable", "avx2", "avx512vnni", "neon", "neon-dotprod")
