"""The examples of the documentation are what the code takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builder.config import Config

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_configurations_load(text: str, tmp_path: Path) -> None:
    path = tmp_path / "retrieval.yaml"
    path.write_text(text)
    assert Config.load(path).name in ("movies", "shop")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
