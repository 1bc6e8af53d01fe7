"""A file of weights is the one whose checksum was compared, or it is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from engine.plugin.auth import answer_file_check
from engine.plugin.file_check import check_file, check_identity

CONTENTS = b"weights"
CHECKSUM = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "v1.safetensors"
    path.write_bytes(CONTENTS)
    return path


def test_check_file_of_the_announced_contents_gives_its_identity(file: Path) -> None:
    identity = check_file(file, CHECKSUM)
    check_identity(file, identity)
    check_identity(Path(os.path.relpath(file)), identity)


def test_check_file_with_another_checksum_names_both(file: Path) -> None:
    with pytest.raises(ValueError, match=f"{CHECKSUM}.*announced was 00"):
        check_file(file, "00")


def test_check_file_that_is_missing_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: .*nowhere"):
        check_file(tmp_path / "nowhere", CHECKSUM)
    with pytest.raises(ValueError, match=r"cannot be read: .*nowhere"):
        check_identity(tmp_path / "nowhere", [1, 2, 3])


@pytest.mark.parametrize("way", ["longer", "another file", "written again"])
def test_check_identity_of_a_file_that_has_changed_is_an_error(file: Path, way: str) -> None:
    identity = check_file(file, CHECKSUM)
    if way == "longer":
        file.write_bytes(CONTENTS + b"!")
        os.utime(file, ns=(identity[2], identity[2]))
    elif way == "another file":
        other = file.with_name("other")
        other.write_bytes(CONTENTS)
        os.utime(other, ns=(identity[2], identity[2]))
        other.replace(file)
    else:
        os.utime(file, ns=(identity[2] + 1, identity[2] + 1))
    with pytest.raises(ValueError, match="have changed since their checksum was compared"):
        check_identity(file, identity)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"path": 3, "checksum": ""}', b"\xff"])
async def test_answer_to_a_request_that_is_none_says_what_is_wrong(body: bytes) -> None:
    status, answer = await answer_file_check(body)
    assert status == 400 and b'"message"' in answer
