import os
from pathlib import Path

import numpy as np
import pytest
import torch

from builder.errors import BuilderError
from builder.training import checkpoint

CPU = torch.device("cpu")


def test_round_trip(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": {"c": 1.5, "d": None, "e": [{"f": "g"}]}}
    checkpoint.save(state, tmp_path / "c.pt")
    found = checkpoint.restore(tmp_path / "c.pt", CPU)
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"] == state["b"]
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_killed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save({"epoch": 1}, tmp_path / "c.pt")

    def killed(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"epoch": 2}, tmp_path / "c.pt")
    assert checkpoint.restore(tmp_path / "c.pt", CPU) == {"epoch": 1}


class Evil:
    def __reduce__(self) -> object:
        return os.system, ("touch executed",)


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    torch.save({"a": Evil()}, path)
    with pytest.raises(BuilderError, match="cannot be read as a checkpoint"):
        checkpoint.restore(path, CPU)
    assert not (tmp_path / "executed").exists()
    for content in (b"", b"not a checkpoint", path.read_bytes()[:40]):
        path.write_bytes(content)
        with pytest.raises(BuilderError, match=r"c\.pt: cannot be read as a checkpoint"):
            checkpoint.restore(path, CPU)
    with pytest.raises(BuilderError, match="cannot be read as a checkpoint"):
        checkpoint.restore(tmp_path / "none.pt", CPU)


def test_bytes_changed_anywhere_are_told_or_read(tmp_path: Path) -> None:
    """Whatever torch's reader raises for them."""
    path = tmp_path / "state.pt"
    checkpoint.save({"a": torch.arange(3), "b": {"c": [1.5, "text"]}, "e": None}, path)
    whole, seed = path.read_bytes(), 4
    rng = np.random.default_rng(seed)
    pickled = whole.index(b"data.pkl")
    told = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[pickled + int(rng.integers(0, 200))] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            checkpoint.restore(path, CPU)
        except BuilderError as error:
            told += str(path) in str(error)
    assert told > 50, f"seed {seed}"
