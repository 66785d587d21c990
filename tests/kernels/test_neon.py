"""The instruction sets against each other without torch, those of aarch64 in an emulator where the machine is another.

native/instruction_sets.cpp compares the sets of the machine it runs on. Its digest of all results must be the same
everywhere: one compiler may contract or reorder the floats of all its sets alike, two do not. The emulated half needs,
on Debian, `apt-get install g++-aarch64-linux-gnu qemu-user`.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builder import oplib

HARNESS = Path(__file__).parent / "native" / "instruction_sets.cpp"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
ON_AARCH64 = platform.machine() == "aarch64"
CAN_EMULATE = not ON_AARCH64 and EMULATOR is not None and shutil.which(CROSS_COMPILER) is not None

pytestmark = pytest.mark.slow


def compile_harness(program: Path, command: list[str]) -> None:
    sources = [*sorted(oplib.KERNELS.glob("cpu/*.cpp")), HARNESS]
    includes = [f"-I{oplib.KERNELS / folder}" for folder in ("include", "cpu")]
    result = subprocess.run(
        [*command, *oplib.COMPILE_FLAGS, *includes, *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def run(*command: str | Path) -> tuple[list[str], str]:
    """The sets that the harness has compared, best first, and its digest."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stdout}{result.stderr}"
    sets, digest = result.stdout.splitlines()
    return sets.split()[1:], digest


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The harness for this machine and, if it can be run, for aarch64."""
    folder = tmp_path_factory.mktemp("harness")
    commands = {"native": oplib.compiler()}
    if CAN_EMULATE:
        commands["aarch64"] = [CROSS_COMPILER, "-static"]
    with ThreadPoolExecutor(oplib.COMPILE_JOBS) as jobs:
        list(jobs.map(compile_harness, [folder / name for name in commands], commands.values()))
    return {name: folder / name for name in commands}


def test_the_sets_of_this_machine_agree(programs: dict[str, Path]) -> None:
    sets, _ = run(programs["native"])
    assert sets[-1] == "portable"
    if ON_AARCH64:
        has_dotprod = " asimddp" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
        assert sets == ["neon-dotprod"] * has_dotprod + ["neon", "portable"]


@pytest.mark.skipif(ON_AARCH64, reason="this machine is aarch64: nothing to emulate")
@pytest.mark.skipif(
    not ON_AARCH64 and not CAN_EMULATE,
    reason=f"{CROSS_COMPILER} or qemu-aarch64 is not installed: apt-get install g++-aarch64-linux-gnu qemu-user",
)
@pytest.mark.parametrize(
    ("processor", "sets"),
    [("max", ["neon-dotprod", "neon", "portable"]), ("cortex-a57", ["neon", "portable"])],
)
def test_the_sets_of_aarch64_agree(programs: dict[str, Path], processor: str, sets: list[str]) -> None:
    assert EMULATOR is not None
    tested, digest = run(EMULATOR, "-cpu", processor, programs["aarch64"])
    assert tested == sets
    assert digest == run(programs["native"])[1]
