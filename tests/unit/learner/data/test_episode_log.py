"""The log of trajectories: what was appended comes back.

It does whatever happens to the end of the log, or to a byte of it.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import learner.data.episode_log
from learner.data.episode_log import EpisodeLog, Records, read_records


def frames_in(directory: Path, start: int = 0) -> list[bytes]:
    return [frame for _, _, frame in read_records(directory, start)]


def appended(directory: Path, *frames: bytes, **settings: float) -> list[int]:
    log = EpisodeLog.open(directory, **settings)
    begins = [begin for frame in frames for begin in log.append([frame])]
    log.close()
    return begins


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def test_the_log_gives_back_what_was_appended(tmp_path: Path):
    log = EpisodeLog.open(tmp_path)
    begins = [*log.append([b"one"]), *log.append([b"two", b"three"])]
    log.close()
    assert [(begin, frame) for begin, _, frame in read_records(tmp_path)] == list(
        zip(begins, (b"one", b"two", b"three"), strict=True)
    )
    assert frames_in(tmp_path, begins[2]) == [b"three"]


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_torn_record_at_the_end_is_cut_off(tmp_path: Path, cut: int):
    appended(tmp_path, b"whole", b"torn")
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-cut])
    appended(tmp_path, b"next")
    assert frames_in(tmp_path) == [b"whole", b"next"]


def test_a_last_record_that_has_its_length_but_not_its_bytes_is_cut_off(tmp_path: Path):
    """As a file system may leave it that wrote the length of a file before its contents."""
    appended(tmp_path, b"whole", b"unwritten")
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    appended(tmp_path, b"next")
    assert frames_in(tmp_path) == [b"whole", b"next"]


@pytest.mark.parametrize("zeros", [3, 8, 400])
def test_zeros_at_the_end_are_cut_off(tmp_path: Path, zeros: int):
    """Zeros at the end, which a file system may leave, are cut off.

    It had only the length of the file on the disk when the machine went down.
    """
    appended(tmp_path, b"whole")
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes() + bytes(zeros))
    appended(tmp_path, b"next")
    assert frames_in(tmp_path) == [b"whole", b"next"]


def test_a_damaged_record_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    begins = appended(tmp_path, b"first", b"second", b"third")
    (file,) = files(tmp_path)
    data = bytearray(file.read_bytes())
    data[begins[1] + 18] ^= 1
    file.write_bytes(data)
    appended(tmp_path, b"fourth")
    assert frames_in(tmp_path) == [b"first", b"third", b"fourth"]
    assert f"the record at {begins[1]}" in caplog.text


@given(
    frames=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12),
    file_bytes=st.integers(1, 100),
    data=st.data(),
)
def test_a_log_of_many_files_reads_as_one_of_a_single_file_does(
    tmp_path_factory, frames: list[bytes], file_bytes: int, data: st.DataObject
):
    one = tmp_path_factory.mktemp("one")
    many = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patched:
        begins = appended(one, *frames)
        patched.setattr(learner.data.episode_log, "FILE_BYTES", file_bytes)
        assert appended(many, *frames[:5]) + appended(many, *frames[5:]) == begins
    start = data.draw(st.sampled_from(begins))
    assert list(read_records(many, start)) == list(read_records(one, start))
    assert list(Records(many)) == list(Records(one)) == frames


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_records_that_are_read_one_at_a_time_are_those_that_are_whole(tmp_path: Path, cut: int):
    begins = appended(tmp_path, b"first", b"second", b"third", b"torn")
    (file,) = files(tmp_path)
    data = bytearray(file.read_bytes()[:-cut])
    data[begins[1] + 18] ^= 1
    file.write_bytes(data)
    assert list(Records(tmp_path)) == [b"first", None, b"third"]


def test_episode_log_removes_only_what_a_checkpoint_has_once_there_is_too_much(
    tmp_path: Path,
):
    """A record that is in no checkpoint is never removed, and others are once there is too much."""
    log = EpisodeLog.open(tmp_path, kept_bytes=800)
    begins = [
        begin for _ in range(40) for begin in log.append([bytes(34)])
    ]  # of 50 bytes, two a file
    log.forget(before=0)
    assert len(frames_in(tmp_path)) == 40
    log.forget(before=begins[10])
    assert next(read_records(tmp_path))[0] == begins[10]
    log.forget(before=log.position)
    kept = frames_in(tmp_path)
    assert 800 <= 50 * len(kept) <= 900
    log.close()
    assert appended(tmp_path, b"more", kept_bytes=800) == [2000]


@given(
    frames=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8, unique=True),
    data=st.data(),
)
def test_episode_log_loses_one_record_at_most_to_a_damaged_byte(
    tmp_path_factory, frames: list[bytes], data
):
    """A damaged byte wherever it is costs one record at most and none that follows."""
    directory = tmp_path_factory.mktemp("log")
    appended(directory, *frames)
    (file,) = files(directory)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    appended(directory, b"what came afterwards, which is longer than others")
    *left, last = frames_in(directory)
    assert (
        last.startswith(b"what")
        and len(left) >= len(frames) - 1
        and left == [frame for frame in frames if frame in left]
    )


def test_episode_log_whose_end_was_lost_is_read_from_a_checkpoints_position(
    tmp_path: Path,
):
    """Records appended after the log's end was lost are found from a checkpoint's position."""
    begins = appended(tmp_path, b"first", b"second", b"third", b"fourth")
    (file,) = files(tmp_path)
    position = file.stat().st_size
    os.truncate(file, begins[2])
    appended(tmp_path, b"acknowledged", b"this too")
    assert frames_in(tmp_path, position)[-2:] == [b"acknowledged", b"this too"]


@pytest.mark.parametrize("room_bytes", [0, 5])
def test_a_full_disk_is_an_error_that_says_where_and_leaves_the_log_whole(
    tmp_path: Path, room_bytes: int
):
    """A limit on the size of files stands for the disk: what fits is written before the error."""
    log = EpisodeLog.open(tmp_path)
    log.append([b"first"])
    before = log.position
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + room_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match=r"\.log cannot be written: .*File too large.*run\.dir;"):
            log.append([b"second, and longer than the others"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    assert log.position == before == files(tmp_path)[0].stat().st_size
    appended(tmp_path, b"third")
    assert frames_in(tmp_path) == [b"first", b"third"]


def test_without_a_limit_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learner.data.episode_log, "FILE_BYTES", 10)
    log = EpisodeLog.open(tmp_path)
    log.append([b"one", b"two"])
    log.forget(before=log.position)
    log.close()
    assert frames_in(tmp_path) == [b"one", b"two"]


@pytest.mark.parametrize("fsync", [False, True])
def test_records_are_on_the_disk_when_append_returns_exactly_if_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log = EpisodeLog.open(tmp_path, fsync=fsync)
    synced.clear()
    log.append([b"one", b"two"])
    log.close()
    assert synced == ([log.position] if fsync else [])
