"""Files that are complete or absent, errors of writing, and how many files may be open."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

_BLOCK_BYTES = 1 << 16
"""Bytes read at once to find the end of the last line."""


def allow_many_files() -> None:
    """Let this process open as many files and sockets as the system allows.

    The usual 1,024 are fewer than what thousands of turns at once (a connection to an engine each)
    and hundreds of actors take; a turn without a connection would be an episode lost.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


class WriteError(OSError):
    """A file cannot be written; the message is one sentence.

    It says which file, why, which setting chose its place, and how much room there was.
    """


def write_error(path: Path, error: Exception, setting: str) -> WriteError:
    """Make the WriteError about `path`.

    `error` was raised by the system or a library (torch and safetensors have errors of their own
    for a full disk).
    """
    disk = next(folder for folder in path.absolute().parents if folder.exists())
    free_mb = shutil.disk_usage(disk).free / 2**20
    reason = getattr(error, "strerror", None) or error
    source = f"{setting}; " if setting else ""
    return WriteError(
        f"{path} cannot be written: {reason} ({source}{disk} had {free_mb:,.1f} MB left)"
    )


@contextlib.contextmanager
def atomic_replace(final: Path, unfinished: Path, setting: str) -> Iterator[None]:
    """Guard the making of `unfinished` (a file or a directory), which is to become `final`.

    If that fails, `unfinished` is removed, and whatever was raised becomes WriteError.
    """
    try:
        yield
    except Exception as error:
        failure = write_error(final, error, setting)  # before what took the room is removed
        _remove(unfinished)
        raise failure from error
    except BaseException:
        _remove(unfinished)
        raise


def _remove(path: Path) -> None:
    """Remove a file or a directory, as far as that works."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str, setting: str = "", mode: int = 0o666) -> None:
    """Write a file that is there in full or, if that fails, as it was before.

    It survives this process, not the machine. `setting` is what chose its place. The umask takes
    away from `mode`. A pipe or a device is written to as it is. Raises WriteError.
    """
    content = data.encode() if isinstance(data, str) else data
    path = Path(os.path.realpath(path))
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    with atomic_replace(path, unfinished, setting):
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)


class AppendOnlyFile:
    """A file that whole lines are added to, by one process at a time."""

    def __init__(self, path: Path, setting: str) -> None:
        """Open `path` to append; a torn last line of an earlier process is cut off.

        Raises WriteError if that fails.
        """
        self._path = path
        self._setting = setting
        try:
            self._file = path.open("ab+", buffering=0)
            end = _end_of_lines(self._file)
            if end < self._file.seek(0, os.SEEK_END):
                self._file.truncate(end)
        except OSError as error:
            raise write_error(path, error, setting) from error

    def append(self, line: bytes) -> None:
        """Add a line, which readers see at once.

        Raises WriteError if that fails; nothing of the line is there then.
        """
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise write_error(self._path, error, self._setting) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _end_of_lines(file: FileIO) -> int:
    """Find where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - _BLOCK_BYTES)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
