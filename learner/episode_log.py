"""The learner's log of trajectories: appended before they are acknowledged, read again after a crash.

A record is its length and CRC-32 (little-endian, four bytes each) and the frame as it came from the actor. A process that is
killed leaves at most one torn record at the end; opening the log cuts it off.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_HEADER = struct.Struct("<II")
_BUFFER = 256 << 10
"""Bytes. Several small records are one write; a large one is not copied."""


class EpisodeLog:
    """Append-only; `position` is the offset at which the next record will stand."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.position = max((end for _, end, _ in read_records(path)), default=0) if path.exists() else 0
        self._file = path.open("ab", buffering=_BUFFER)
        self._file.truncate(self.position)
        self._file.seek(self.position)

    def append(self, frames: Sequence[bytes]) -> list[int]:
        """Write a record for each frame, and hand them to the operating system; returns where each begins."""
        starts = []
        for frame in frames:
            starts.append(self.position)
            self._file.write(_HEADER.pack(len(frame), zlib.crc32(frame)))
            self._file.write(frame)
            self.position += _HEADER.size + len(frame)
        self._file.flush()
        return starts

    def close(self) -> None:
        self._file.close()


def read_records(path: Path, start: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """(begin, end, frame) of every whole record from offset `start` on; stops at the first torn one."""
    with path.open("rb") as file:
        file.seek(start)
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            frame = file.read(length)
            if len(frame) < length or zlib.crc32(frame) != checksum:
                return
            yield start, start + _HEADER.size + length, frame
            start += _HEADER.size + length
