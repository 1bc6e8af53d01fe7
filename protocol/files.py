"""Files: how many a process may have open, how they come to be complete or absent, and what is said
of one that cannot be written."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

_BLOCK_BYTES = 1 << 16
"""How much is read at once to find the end of the last line."""


def allow_many_files() -> None:
    """As many files and sockets as the system lets this process ask for.

    The usual 1,024 are fewer than what thousands of turns at once (a connection to an engine each)
    and hundreds of actors take; a turn without a connection would be an episode lost.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class WriteError(OSError):
    """A file that cannot be written, in one sentence: which, why, the setting that chose its place,
    and how much room there was."""


def write_error(path: Path, error: Exception, setting: str) -> WriteError:
    """The sentence about `path`.

    `error`: what was raised, by the system or a library (torch and safetensors have errors of their
    own for a full disk).
    """
    disk = next(place for place in path.absolute().parents if place.exists())
    free = shutil.disk_usage(disk).free / 2**20
    reason = getattr(error, "strerror", None) or error
    chosen = f"{setting}; " if setting else ""
    return WriteError(
        f"{path} cannot be written: {reason} ({chosen}{disk} had {free:,.1f} MB left)"
    )


@contextlib.contextmanager
def atomic_replace(final: Path, unfinished: Path, setting: str) -> Iterator[None]:
    """While `unfinished` (a file or a directory) is made, which becomes `final`.

    If that fails, it is removed, and whatever was raised becomes WriteError.
    """
    try:
        yield
    except BaseException as error:
        failure = write_error(final, error, setting) if isinstance(error, Exception) else None
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
        if failure is None:
            raise
        raise failure from error


def atomic_write(path: Path, data: bytes | str, setting: str = "", mode: int = 0o666) -> None:
    """Write a file that is there in full or, if that fails, as it was before: WriteError then. It
    survives this process, not the machine.

    `setting`: what chose its place. `mode`: of which the umask takes away. A pipe or a device is
    written to as it is.
    """
    content = data if isinstance(data, bytes) else data.encode()
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
    """A file that whole lines are added to. One process at a time writes it."""

    def __init__(self, path: Path, setting: str) -> None:
        """Opens `path` to append; a torn last line of an earlier process is cut off.

        WriteError if that fails.
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

        WriteError if that fails; nothing of the line is there then.
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
        self._file.close()


def _end_of_lines(file: FileIO) -> int:
    """Where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - _BLOCK_BYTES)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
