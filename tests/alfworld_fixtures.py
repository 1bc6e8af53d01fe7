"""ALFWorld's own games, where they are at hand."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from envs.alfworld.files import find_games

ARCHIVE = Path(__file__).parent.parent.parent / "shared" / "data" / "alfworld_valid_train.tgz"


@pytest.fixture(scope="session")
def real_games(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The directories of 200 games of json_2.1.1, of all six types."""
    if not ARCHIVE.is_file():
        pytest.skip(f"ALFWorld's own games are not at hand ({ARCHIVE.name})")
    directory = tmp_path_factory.mktemp("alfworld")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    return find_games(directory / "valid_train")
