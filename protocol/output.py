"""Standard streams that do not fail: what reads them may go (a pipe, a terminal), stop reading, or
be a disk without room."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

CHUNK_BYTES = select.PIPE_BUF
"""A stream that can be written to takes so many bytes without waiting."""

LONGEST_WAIT_SECONDS = 0.1
"""So long a process that has other work waits for its reader (a terminal after Ctrl-S, a pager),
before what it shows is dropped."""


class LastingFile(io.FileIO):
    """A descriptor that takes whatever is written to it.

    What cannot be written is gone, and the first reason is kept as `failure`.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self.longest_wait_seconds: float | None = None
        """For a reader that does not read; None: for ever."""

    def write(self, data: bytes | memoryview) -> int:
        """The number of bytes that were written or dropped, which is never 0."""
        try:
            while select.select([], [self], [], self.longest_wait_seconds)[1]:
                written = super().write(data[:CHUNK_BYTES])
                if written is not None:  # else somebody has made it non-blocking, and it is full
                    return written
        except OSError as error:
            self.failure = self.failure or error
        return len(data)


def outlive_readers() -> None:
    """Make this process's output a LastingFile, and its standard descriptors open: a file opened
    later would take the place of one that is closed (`>&-`), and get what is meant for it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_nowhere(descriptor)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, 2)


@contextlib.contextmanager
def drop_unread_output() -> Iterator[None]:
    """While inside, output that nobody reads is dropped soon: this process has other work than to
    wait for it."""
    files = [file for file in map(_lasting_file, (sys.stdout, sys.stderr)) if file is not None]
    for file in files:
        file.longest_wait_seconds = LONGEST_WAIT_SECONDS
    try:
        yield
    finally:
        for file in files:
            file.longest_wait_seconds = None


def output_failure() -> OSError | None:
    """Why some of the standard output could not be written; None if all of it was, or its reader
    wanted no more."""
    file = _lasting_file(sys.stdout)
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


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """A text stream in the place of Python's own, which is None where the descriptor was closed."""
    encoding = stream.encoding if stream is not None else "utf-8"
    by_line = descriptor == 2 or (stream is not None and stream.line_buffering)
    buffer = io.BufferedWriter(LastingFile(descriptor))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="replace", line_buffering=by_line)


def _lasting_file(stream: TextIO | None) -> LastingFile | None:
    file = getattr(getattr(stream, "buffer", None), "raw", None)
    return file if isinstance(file, LastingFile) else None
