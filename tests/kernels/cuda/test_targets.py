"""The CUDA kernels compiled for every GPU that the library is built for. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builder import nvcc, oplib

DOCUMENT = Path(__file__).parents[3] / "docs" / "gpu.md"
# Kernels whose loops over rows have to do with registers. A few words saved around such a loop cost nothing.
SCANS = ("silvertriton_scan", "silvertriton_bounds", "silvertriton_filter")
MOST_SPILLED = 64  # bytes


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> nvcc.Nvcc:
    monkeypatch.delenv(nvcc.TARGETS_VARIABLE, raising=False)
    found = nvcc.find_nvcc()
    if found is None:
        pytest.skip("there is no nvcc")
    return found


def sources() -> list[Path]:
    of_library = [path for path in oplib.kernel_files() if path.suffix == ".cu" and path.name != "device.cu"]
    return [*of_library, *sorted(oplib.PLUGINS.glob("*.cu"))]


def declared() -> set[str]:
    return {name for path in sources() for name in re.findall(r"\b(silvertriton_\w+)\(", path.read_text())}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kernel_compiles_for_every_target_and_scans_hardly_spill(compiler: nvcc.Nvcc, tmp_path: Path) -> None:
    def report(source: Path) -> str:
        command = [*compiler.compile_command(), f"-I{oplib.KERNELS / 'include'}", "-Xptxas", "-v", "-fatbin"]
        result = subprocess.run(
            [*command, str(source), "-o", str(tmp_path / f"{source.parent.name}_{source.stem}.fatbin")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        assert "warning" not in result.stdout, result.stdout
        return result.stdout

    with ThreadPoolExecutor(oplib.COMPILE_JOBS) as jobs:
        text = "\n".join(jobs.map(report, sources()))
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers",
        text,
        re.DOTALL,
    )
    kernels = {name for name, *_ in found}
    assert {(name, target) for name, target, *_ in found} == {
        (name, target) for name in kernels for target in nvcc.TARGETS
    }
    for name, target, _, spilled, registers in found:
        print(f"{name} sm_{target}: {registers} registers, {spilled} bytes spilled")
        if name in SCANS:
            assert int(spilled) <= MOST_SPILLED, f"{name} for sm_{target} spills {spilled} bytes"
    assert kernels == declared()


def test_the_document_names_every_kernel() -> None:
    entries = declared()
    assert len(entries) > 10
    text = DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall(r"`(silvertriton_\w+)`", text)) == entries


def test_targets_are_chosen_by_the_environment(compiler: nvcc.Nvcc, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler.targets == nvcc.TARGETS
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, "90, 80")
    chosen = nvcc.find_nvcc()
    assert chosen is not None
    assert chosen.name() == "sm_80 sm_90 compute_90"
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, "none")
    assert nvcc.find_nvcc() is None
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, "80,11")
    with pytest.raises(oplib.OplibError, match=r"SILVERTRITON_CUDA_TARGETS is 80,11, but .*nvcc has no '11'; it has "):
        nvcc.find_nvcc()


def test_without_nvcc_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(nvcc.shutil, "which", lambda name: None)
    monkeypatch.delenv(nvcc.TARGETS_VARIABLE, raising=False)
    assert nvcc.find_nvcc() is None
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, "90")
    with pytest.raises(oplib.OplibError, match="SILVERTRITON_CUDA_TARGETS is 90, but there is no nvcc"):
        nvcc.find_nvcc()
