"""A file of weights is hashed before an engine stands still for it, and known again when it loads.

Whoever updates engines asks one of them on each machine to hash the file. What it answers names the
file as it was then: loading takes no other. Imports neither vllm nor torch.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

FileIdentity = list[int]
"""Inode, bytes, and time of the last change in nanoseconds: other contents have others."""


def check_file(path: Path, checksum: str) -> FileIdentity:
    """Return the identity of the file whose SHA-256 is `checksum` (hexadecimal).

    Raises ValueError when it is missing, or another one.
    """
    try:
        with path.open("rb") as file:
            identity = _identity(os.fstat(file.fileno()))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = _identity(os.fstat(file.fileno())) == identity
    except OSError as error:
        raise ValueError(f"weights cannot be read: {error}") from None
    if digest != checksum:
        raise ValueError(f"weights {path} have checksum {digest}, announced was {checksum}")
    if not unchanged:
        raise ValueError(f"weights {path} were written while they were read")
    return identity


def check_identity(path: Path, identity: FileIdentity) -> None:
    """Raise ValueError when the file is missing, or is not the one of that identity."""
    try:
        found = _identity(path.stat())
    except OSError as error:
        raise ValueError(f"weights cannot be read: {error}") from None
    if found != list(identity):
        raise ValueError(f"weights {path} have changed since their checksum was compared")


def _identity(status: os.stat_result) -> FileIdentity:
    return [status.st_ino, status.st_size, status.st_mtime_ns]
