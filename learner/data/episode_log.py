"""The learner's log of trajectories: appended to before they are acknowledged, read after a crash.

A record is a header (a mark, the frame's length, its CRC-32, and the CRC-32 of these three;
little-endian, four bytes each) and the frame as it came from the actor. Records stand one after
another in files of some size, each named after the offset in the whole log at which it begins. A
process that is killed leaves at most one torn record, at the end; opening the log cuts it off. A
record whose bytes have changed since is passed over, and so costs itself alone: where it is the
header, the next sound one is looked for.

Beside the log, `<run>/batches.jsonl` says which groups each update trained on: the log cannot tell
where groups may pass each other.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.files import AppendOnlyFile, write_error

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<4sIII")
_MARK = b"\xf0rec"
_BLOCK_BYTES = 1 << 20
"""How much is read at once to find the next header."""

FILE_BYTES = 256 << 20
"""Size after which the next file begins, or after an eighth of what may be kept."""

BATCHES_FILE = "batches.jsonl"


class EpisodeLog:
    """Append-only; `position` is the offset at which the next record will stand."""

    def __init__(
        self,
        directory: Path,
        file: io.FileIO,
        begin: int,
        position: int,
        kept_bytes: float,
        fsync: bool,
    ) -> None:
        """Use `open`, which finds out where the log ends.

        `file` is the last one, open to be appended to, and `begin` its offset.
        """
        self.position = position
        self._directory = directory
        self._begin = begin
        self._kept_bytes = kept_bytes
        self._fsync = fsync
        self._file_bytes = min(FILE_BYTES, kept_bytes / 8 or FILE_BYTES)
        self._file = file

    @classmethod
    def open(cls, directory: Path, *, kept_bytes: float = 0, fsync: bool = False) -> EpisodeLog:
        """Open the log of a directory, which may be new, and cut off a torn record.

        `kept_bytes`: size beyond which `forget` removes the oldest files; 0: none are removed.
        `fsync`: what `append` has written survives the machine, too, and not only this process.
        """
        directory.mkdir(parents=True, exist_ok=True)
        files = _list_files(directory)
        begin = 0
        position = 0
        if files:
            begin = files[-1][0]
            position = max((record.end for record in read_records(directory, begin)), default=begin)
        file = _open_file(directory, begin, fsync)
        episode_log = cls(directory, file, begin, position, kept_bytes, fsync)
        episode_log._cut_off()
        return episode_log

    def append(self, frames: Sequence[bytes]) -> list[int]:
        """Write a record for each frame (none is empty), and return where each begins.

        The operating system has them then. OSError, with none of the frames in the log's last file,
        if the disk is full.
        """
        starts = []
        records = []
        size = 0
        for frame in frames:
            if self.position + size - self._begin >= self._file_bytes:
                self._write(records)
                records = []
                size = 0
                self._begin_file()
            starts.append(self.position + size)
            records += [_encode_header(frame), frame]
            size += _HEADER.size + len(frame)
        self._write(records)
        return starts

    def sync(self) -> None:
        """Have all that was appended on the disk, before a checkpoint says where it ends."""
        os.fsync(self._file.fileno())

    def forget(self, before: int) -> None:
        """Remove the oldest files of records before this offset, as long as too much is kept.

        A checkpoint has what these records held.
        """
        begins = [begin for begin, _ in _list_files(self._directory)]
        for begin, end in itertools.pairwise(begins):
            is_needed = end > before or self.position - begin <= self._kept_bytes
            if is_needed or not self._kept_bytes:
                return
            _file_of(self._directory, begin).unlink()

    def close(self) -> None:
        self._file.close()

    def _write(self, records: Sequence[bytes]) -> None:
        """Write all records at once, since each write is a call of the system."""
        if not records:
            return
        unwritten = memoryview(b"".join(records))
        size = len(unwritten)
        try:
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
            if self._fsync:
                self.sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._cut_off()
            path = _file_of(self._directory, self._begin)
            raise write_error(path, error, "run.dir; learner.log_gb bounds the log") from error
        self.position += size

    def _cut_off(self) -> None:
        """Cut off what stands after the last complete record."""
        self._file.truncate(self.position - self._begin)

    def _begin_file(self) -> None:
        self._file.close()
        self._begin = self.position
        self._file = _open_file(self._directory, self._begin, self._fsync)


class LoggedFrame(NamedTuple):
    """A frame of the log, and the offsets between which its record stands."""

    begin: int
    end: int
    frame: bytes


class Records(Sequence[bytes | None]):
    """The records of a log, found by their headers alone, and read one at a time.

    A damaged one is None.
    """

    def __init__(self, directory: Path) -> None:
        self._places: list[tuple[Path, _Place]] = []
        for _, path in _list_files(directory):
            with path.open("rb") as file:
                self._places += [(path, place) for place in _scan(file.fileno(), 0)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> bytes | None:
        path, place = self._places[number]
        with path.open("rb") as file:
            return _read_frame(file.fileno(), place)


def first_offset(directory: Path) -> int:
    """Return the offset of the first record that is still there (`learner.log_gb`)."""
    return min((begin for begin, _ in _list_files(directory)), default=0)


def read_records(directory: Path, start: int = 0) -> Iterator[LoggedFrame]:
    """Read every sound record from offset `start` on that is still there, up to a torn one.

    `start` is where a record began or the log ended. If it is neither any more, the log has lost
    its end since (with the machine), and what was appended then stands before it: all of the file
    is read.
    """
    files = _list_files(directory)
    ends = [begin for begin, _ in files[1:]]
    for (begin, file), end in zip(files, [*ends, None], strict=True):
        if end is None or start < end:
            yield from _read_file(file, begin, max(start, begin))


def record_batch(run_dir: Path, update: int, groups: Sequence[int]) -> None:
    """Add to `batches.jsonl` what `update` is about to train on.

    After a crash it may be there already: the last line of an update counts.
    """
    line = json.dumps({"update": update, "groups": list(groups)}) + "\n"
    with contextlib.closing(AppendOnlyFile(run_dir / BATCHES_FILE, "run.dir")) as file:
        file.append(line.encode())


def read_group_order(run_dir: Path) -> list[int]:
    """Return the groups that the updates of a run trained on, in their order.

    It is empty for a run that recorded none.
    """
    path = run_dir / BATCHES_FILE
    if not path.exists():
        return []
    batches: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        try:
            batch = json.loads(line)
        except json.JSONDecodeError:  # torn by a crash, and not begun again yet
            continue
        batches[batch["update"]] = batch["groups"]
    return [group for update in sorted(batches) for group in batches[update]]


class _Place(NamedTuple):
    """The place of a record in its file."""

    begin: int  # of the header
    length: int  # of the frame
    checksum: int

    @property
    def end(self) -> int:
        return self.begin + _HEADER.size + self.length


def _read_file(path: Path, base: int, start: int) -> Iterator[LoggedFrame]:
    """Read the sound records of a file, which begins at the offset `base`, from `start` on."""
    with path.open("rb") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        if start > base and not _ends_a_record(descriptor, start - base):
            start = base
        for place in _scan(descriptor, start - base):
            frame = _read_frame(descriptor, place)
            if frame is not None:
                yield LoggedFrame(base + place.begin, base + place.end, frame)
            elif place.end == size:
                return  # as long as it should be, and not all of it was written
            else:
                log.warning("the record at %d of %s is damaged: passed over", place.begin, path)


def _ends_a_record(file: int, offset: int) -> bool:
    return any(place.end == offset for place in _scan(file, 0))


def _scan(file: int, offset: int) -> Iterator[_Place]:
    """Find each record from there on, by the headers alone, up to the first torn one."""
    size = os.fstat(file).st_size
    while offset < size:
        place = _read_header(file, offset)
        if place is None:
            begin = offset
            following = _next_header(file, begin + 1)
            if following is None:
                # torn, or zeros, where the machine went down before the data was on the disk
                return
            offset = following
            log.warning(
                "a header in the log is damaged: %d bytes at %d are passed over",
                offset - begin,
                begin,
            )
            continue
        if place.end > size:
            return
        yield place
        offset = place.end


def _encode_header(frame: bytes) -> bytes:
    fields = _HEADER.pack(_MARK, len(frame), zlib.crc32(frame), 0)[:-4]
    return fields + struct.pack("<I", zlib.crc32(fields))


def _read_header(file: int, offset: int) -> _Place | None:
    """Return the record whose header stands there; None if it is not a header."""
    header = os.pread(file, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return None
    mark, length, frame_checksum, header_checksum = _HEADER.unpack(header)
    if mark != _MARK or header_checksum != zlib.crc32(header[:-4]):
        return None
    return _Place(offset, length, frame_checksum)


def _next_header(file: int, offset: int) -> int | None:
    """Return where the next sound header begins, from there on; None without one."""
    while True:
        block = os.pread(file, _BLOCK_BYTES, offset)
        mark = block.find(_MARK)
        while mark >= 0:
            if _read_header(file, offset + mark) is not None:
                return offset + mark
            mark = block.find(_MARK, mark + 1)
        if len(block) < _BLOCK_BYTES:
            return None
        offset += len(block) - len(_MARK) + 1


def _read_frame(file: int, place: _Place) -> bytes | None:
    """Return a record's frame; None if its bytes are not those that were written."""
    frame = os.pread(file, place.length, place.begin + _HEADER.size)
    if zlib.crc32(frame) != place.checksum:
        return None
    return frame


def _open_file(directory: Path, begin: int, fsync: bool) -> io.FileIO:
    """Open the file that begins at this offset, which may be new, to append to it."""
    file = _file_of(directory, begin).open("ab", buffering=0)
    if fsync:
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)  # the file's name, too
        os.close(descriptor)
    return file


def _file_of(directory: Path, begin: int) -> Path:
    return directory / f"{begin:015d}.log"


def _list_files(directory: Path) -> list[tuple[int, Path]]:
    """Return (offset at which it begins, file) of each file, in their order."""
    files = []
    for path in directory.glob("*.log"):
        with contextlib.suppress(ValueError):
            files.append((int(path.stem), path))
    return sorted(files)
