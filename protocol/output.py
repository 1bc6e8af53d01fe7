"""Standard streams that do not fail.

Their reader (a pipe, a terminal) may go or stop reading, and a disk may have no room.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CHUNK_BYTES = select.PIPE_BUF
"""Bytes that a stream which can be written to takes without waiting."""

LONGEST_WAIT_SECONDS = 0.1
"""Wait of a process with other work for its reader, before what it shows is dropped.

The reader may be a terminal after Ctrl-S, or a pager.
"""


class LastingFile(io.FileIO):
    """A descriptor that takes whatever is written to it.

    What cannot be written is gone, and the first reason is kept as `failure`.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self.longest_wait_seconds: float | None = None
        """Longest wait for a reader that does not read; None: for ever."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write or drop some bytes, and return how many, which is never 0."""
        view = memoryview(data)
        try:
            while select.select([], [self], [], self.longest_wait_seconds)[1]:
                written = super().write(view[:CHUNK_BYTES])
                if written is not None:
                    return written
                # Somebody has made it non-blocking, and it is full.
        except OSError as error:
            self.failure = self.failure or error
        return len(view)


def outlive_readers() -> None:
    """Make this process's output a LastingFile, and its standard descriptors open.

    A file opened later would take the place of one that is closed (`>&-`), and get what is meant
    for it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_nowhere(descriptor)
    sys.stdout = _make_lasting(sys.stdout, 1)
    sys.stderr = _make_lasting(sys.stderr, 2)


@contextlib.contextmanager
def drop_unread_output() -> Iterator[None]:
    """Drop output that nobody reads soon, while inside.

    This process then has other work than to wait for its reader.
    """
    files = [file for file in map(_find_lasting_file, (sys.stdout, sys.stderr)) if file is not None]
    for file in files:
        file.longest_wait_seconds = LONGEST_WAIT_SECONDS
    try:
        yield
    finally:
        for file in files:
            file.longest_wait_seconds = None


def output_failure() -> OSError | None:
    """Return why some of the standard output could not be written.

    None if all of it was, or its reader wanted no more.
    """
    file = _find_lasting_file(sys.stdout)
    if file is None:
        return None
    sys.stdout.flush()
    if file.failure is None or file.failure.errno == errno.EPIPE:
        return None
    return file.failure


def _open_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    os.set_inheritable(descriptor, True)


def _make_lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """Make a text stream in the place of Python's own.

    That one is None where the descriptor was closed.
    """
    encoding = getattr(stream, "encoding", "utf-8")
    by_line = descriptor == 2 or (stream is not None and bool(stream.line_buffering))
    buffer = io.BufferedWriter(LastingFile(descriptor))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="replace", line_buffering=by_line)


def _find_lasting_file(stream: TextIO | None) -> LastingFile | None:
    file = getattr(getattr(stream, "buffer", None), "raw", None)
    if isinstance(file, LastingFile):
        return file
    return None
