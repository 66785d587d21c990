import numpy as np
import torch

from builder.network.vocabulary import Vocabulary, vocabulary_of

KEYS = np.array([-(2**62), -1, 0, 7, 2**63 - 1])


def test_slots() -> None:
    asked = torch.tensor([[7, 8], [2**63 - 1, -(2**63)], [-(2**62), 0]])
    assert Vocabulary(KEYS)(asked).tolist() == [[4, 0], [5, 0], [1, 3]]
    assert len(Vocabulary(KEYS)) == 6
    assert Vocabulary(KEYS)(asked.T).tolist() == [[4, 5, 1], [0, 0, 3]]  # not contiguous


def test_without_keys() -> None:
    nothing = Vocabulary(np.empty(0, np.int64))
    assert nothing(torch.tensor([3, -1])).tolist() == [0, 0]
    assert len(nothing) == 1


def test_distinct_without_the_unknown_key() -> None:
    assert vocabulary_of(np.array([5, 3, 5, -9]), -9).keys.tolist() == [3, 5]


def test_scripted_and_saved_with_its_keys() -> None:
    scripted = torch.jit.script(Vocabulary(KEYS))
    assert scripted(torch.tensor([0, 1])).tolist() == [3, 0]
    assert scripted.state_dict()["keys"].tolist() == KEYS.tolist()
