import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the published files: SILVERTRITON_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("SILVERTRITON_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "ml-100k").is_dir() or not (folder / "gowalla").is_dir():
        pytest.skip(f"no ml-100k and gowalla in {folder}; set SILVERTRITON_DATA")
    return folder
