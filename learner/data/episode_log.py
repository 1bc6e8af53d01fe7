"""The learner's log of trajectories: appended before they are acknowledged, read again after a
crash.

A record is a header (a mark, the frame's length, its CRC-32, and the CRC-32 of these three;
little-endian, four bytes each) and the frame as it came from the actor. Records stand one after
another in files of some size, each named after the offset in the whole log at which it begins. A
process that is killed leaves at most one torn record, at the end; opening the log cuts it off. One
whose bytes have changed since is passed over, and so costs itself alone: where it is the header,
the next whole one is looked for.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.files import write_error

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<4sIII")
_MARK = b"\xf0rec"
_BLOCK_BYTES = 1 << 20
"""How much is read at once to find the next header."""

FILE_BYTES = 256 << 20
"""After which the next file begins, or after an eighth of what may be kept."""


class EpisodeLog:
    """Append-only; `position` is the offset at which the next record will stand."""

    def __init__(self, directory: Path, *, keep: float = 0, fsync: bool = False) -> None:
        """`keep`: bytes, beyond which `forget` removes the oldest files; 0: none are removed.

        `fsync`: what `append` has written survives the machine, too, and not only this process.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._keep = keep
        self._fsync = fsync
        self._file_bytes = min(FILE_BYTES, keep / 8) if keep else FILE_BYTES
        files = _files(directory)
        self._begin = files[-1][0] if files else 0
        self.position = (
            max((end for _, end, _ in read_records(directory, self._begin)), default=self._begin)
            if files
            else 0
        )
        self._open()
        self._file.truncate(self.position - self._begin)

    def append(self, frames: Sequence[bytes]) -> list[int]:
        """Write a record for each frame (none is empty), and hand them to the operating system;
        returns where each begins.

        OSError, with none of the frames in the log's last file, if the disk is full.
        """
        starts = []
        records = []
        size = 0
        for frame in frames:
            if self.position + size - self._begin >= self._file_bytes:
                self._write(records)
                records = []
                size = 0
                self._next_file()
            starts.append(self.position + size)
            records += [_header(frame), frame]
            size += _HEADER.size + len(frame)
        self._write(records)
        return starts

    def sync(self) -> None:
        """Have all that was appended on the disk, before a checkpoint says where it ends."""
        os.fsync(self._file.fileno())

    def forget(self, before: int) -> None:
        """Records before this offset are in a checkpoint: files of them may go, the oldest first,
        as long as there is more than is kept."""
        begins = [begin for begin, _ in _files(self._directory)]
        for begin, end in itertools.pairwise(begins):
            if not self._keep or end > before or self.position - begin <= self._keep:
                return
            _file(self._directory, begin).unlink()

    def close(self) -> None:
        self._file.close()

    def _write(self, records: Sequence[bytes]) -> None:
        """Together, since each write is a call of the system."""
        if not records:
            return
        path = _file(self._directory, self._begin)
        rest = memoryview(b"".join(records))
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            if self._fsync:
                self.sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.position - self._begin)
            raise write_error(path, error, "run.dir; learner.log_gb bounds the log") from error
        self.position += size

    def _next_file(self) -> None:
        self._file.close()
        self._begin = self.position
        self._open()

    def _open(self) -> None:
        self._file = _file(self._directory, self._begin).open("ab", buffering=0)
        if self._fsync:
            descriptor = os.open(self._directory, os.O_RDONLY)
            os.fsync(descriptor)  # the file's name, too
            os.close(descriptor)


def first_offset(directory: Path) -> int:
    """Offset of the first record that is still there (`learner.log_gb`)."""
    return min((begin for begin, _ in _files(directory)), default=0)


class Records(Sequence[bytes | None]):
    """The records of a log, found by their headers alone, and read one at a time: None for a
    damaged one."""

    def __init__(self, directory: Path) -> None:
        self._places: list[tuple[Path, _Place]] = []
        for _, path in _files(directory):
            with path.open("rb") as file:
                self._places += [(path, place) for place in _places(file.fileno(), 0)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> bytes | None:
        path, place = self._places[number]
        with path.open("rb") as file:
            return _frame(file.fileno(), place)


def read_records(directory: Path, start: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """(begin, end, frame) of every whole record from offset `start` on that is still there, up to
    the first torn one.

    `start` is where a record began or the log ended. If it is neither any more, the log has lost
    its end since (with the machine), and what was appended then stands before it: the whole file is
    read.
    """
    files = _files(directory)
    ends = [begin for begin, _ in files[1:]]
    for (begin, file), end in zip(files, [*ends, None], strict=True):
        if end is None or start < end:
            yield from _records(file, begin, max(start, begin))


def _records(path: Path, base: int, start: int) -> Iterator[tuple[int, int, bytes]]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if start > base and not any(
            base + place.end == start for place in _places(file.fileno(), 0)
        ):
            start = base
        for place in _places(file.fileno(), start - base):
            if (frame := _frame(file.fileno(), place)) is not None:
                yield base + place.begin, base + place.end, frame
            elif place.end == size:
                return  # as long as it should be, and not all of it was written
            else:
                log.warning("the record at %d of %s is damaged: passed over", place.begin, path)


class _Place(NamedTuple):
    """Where a record stands in its file."""

    begin: int  # of the header
    length: int  # of the frame
    checksum: int

    @property
    def end(self) -> int:
        return self.begin + _HEADER.size + self.length


def _places(file: int, at: int) -> Iterator[_Place]:
    """Of each record from there on, by the headers alone, up to the first torn one."""
    size = os.fstat(file).st_size
    while at < size:
        place = _place(file, at)
        if place is None:
            begin = at
            at = _next_mark(file, at + 1)
            if at is None:
                # torn, or zeros, where the machine went down before the data was on the disk
                return
            log.warning(
                "a header in the log is damaged: %d bytes at %d are passed over", at - begin, begin
            )
            continue
        if place.end > size:
            return
        yield place
        at = place.end


def _header(frame: bytes) -> bytes:
    fields = _HEADER.pack(_MARK, len(frame), zlib.crc32(frame), 0)[:-4]
    return fields + struct.pack("<I", zlib.crc32(fields))


def _place(file: int, at: int) -> _Place | None:
    """The record whose header stands there; None if it is not a header."""
    header = os.pread(file, _HEADER.size, at)
    if len(header) < _HEADER.size:
        return None
    mark, length, checksum, of_header = _HEADER.unpack(header)
    if mark != _MARK or of_header != zlib.crc32(header[:-4]):
        return None
    return _Place(at, length, checksum)


def _next_mark(file: int, at: int) -> int | None:
    """Where the next whole header begins, from there on."""
    while block := os.pread(file, _BLOCK_BYTES, at):
        found = block.find(_MARK)
        while found >= 0:
            if _place(file, at + found) is not None:
                return at + found
            found = block.find(_MARK, found + 1)
        if len(block) < _BLOCK_BYTES:
            return None
        at += len(block) - len(_MARK) + 1
    return None


def _frame(file: int, place: _Place) -> bytes | None:
    """None for one whose bytes are not those that were written."""
    frame = os.pread(file, place.length, place.begin + _HEADER.size)
    return frame if zlib.crc32(frame) == place.checksum else None


def _file(directory: Path, begin: int) -> Path:
    return directory / f"{begin:015d}.log"


def _files(directory: Path) -> list[tuple[int, Path]]:
    """(Offset at which it begins, file), in their order."""
    found = []
    for path in directory.glob("*.log"):
        with contextlib.suppress(ValueError):
            found.append((int(path.stem), path))
    return sorted(found)
