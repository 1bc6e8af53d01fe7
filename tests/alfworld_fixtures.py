"""ALFWorld's own games, where they are at hand."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).parent.parent.parent / "shared" / "data" / "alfworld_valid_train.tgz"


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as ALFWORLD_DATA points at, whose two splits are the same 200 games of all six
    types."""
    if not ARCHIVE.is_file():
        pytest.skip(f"ALFWorld's own games are not at hand ({ARCHIVE.name})")
    directory = tmp_path_factory.mktemp("alfworld") / "json_2.1.1"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    for split in ("train", "valid_unseen"):
        (directory / split).symlink_to(directory / "valid_train")
    return directory.parent
