"""Files are complete or absent, and a disk that is full is told in one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.data.episode_log import BATCHES_FILE, read_group_order, record_batch
from protocol.files import AppendOnlyFile, WriteError, atomic_write
from protocol.messages import Stats
from protocol.security import make_keys
from supervisor.job import save_job, write_settings
from telemetry.collector import TENSORBOARD_FOLDER, open_collector
from telemetry.probes.spans import SpanFile, read_spans
from telemetry.sinks.event_files import EventFile
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics
from telemetry.summary import write_summary
from tests.fixtures.learner import job_in
from tests.fixtures.runs import small_config

SENTENCE = r"^{} cannot be written: File too large \({}; .* had [\d,.]+ MB left\)$"


@contextlib.contextmanager
def no_file_beyond(size_bytes: int) -> Iterator[None]:
    """Let the system write no file beyond that size, while inside.

    The error is as a full disk's, without one.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def update(number: int) -> Stats:
    return Stats(source="learner", event="update", values={"update": number, "version": number})


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    atomic_write(file, "old", "--output")
    with no_file_beyond(100), pytest.raises(WriteError, match=SENTENCE.format(file, "--output")):
        atomic_write(file, "new" * 100, "--output")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with no_file_beyond(100), pytest.raises(WriteError):
        write_summary(tmp_path, {"ended": "finished" * 100})
    assert os.listdir(tmp_path) == []


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    atomic_write(tmp_path / "link", b"through")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"through"
    atomic_write(Path(os.devnull), b"gone")
    assert Path(os.devnull).is_char_device()
    with pytest.raises(WriteError, match="/dev/full cannot be written: No space left on device"):
        atomic_write(Path("/dev/full"), b"more")


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_secrets_are_their_owners_whatever_the_umask_and_other_files_follow_it(
    tmp_path: Path, mask: int
) -> None:
    job = job_in(tmp_path, small_config())
    with umask(mask):
        save_job(job)
        write_settings(job)
        made = make_keys(tmp_path / "keys", "laptop")
    assert mode_of(tmp_path / "job.json") == 0o600
    assert mode_of(tmp_path / "config.toml") == 0o666 & ~mask
    files = [file for place in made for file in [place, *place.rglob("*")] if file.is_file()]
    assert len(files) == 5 and {mode_of(file) for file in files} == {0o600}


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.integers(0, 120))
def test_lines_of_a_file_that_grows_are_whole_whatever_fails(
    tmp_path_factory, contents: list[bytes], room: int
) -> None:
    file = tmp_path_factory.mktemp("growing") / "lines"
    file.write_bytes(b"first\ntorn")
    lines = [content.replace(b"\n", b" ") + b"\n" for content in contents]
    growing = AppendOnlyFile(file, "run.dir")
    written = [b"first\n"]
    with no_file_beyond(room):
        for line in lines:
            fits = sum(map(len, written)) + len(line) <= room
            with contextlib.nullcontext() if fits else pytest.raises(WriteError):
                growing.append(line)
            written += [line] * fits
    growing.close()
    assert file.read_bytes() == b"".join(written)


def test_a_batch_that_was_torn_by_a_crash_does_not_cost_the_next(tmp_path: Path) -> None:
    record_batch(tmp_path, 1, [3, 4])
    with (tmp_path / BATCHES_FILE).open("a") as file:
        file.write('{"update": 2, "gro')
    assert read_group_order(tmp_path) == [3, 4]
    record_batch(tmp_path, 2, [5])
    assert read_group_order(tmp_path) == [3, 4, 5]


def test_figures_that_cannot_be_written_are_told_once_and_the_collector_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector = open_collector(tmp_path)
    collector.handle(update(1))
    size = (tmp_path / METRICS_FILE).stat().st_size
    with no_file_beyond(size + 10):
        for number in (2, 3):
            collector.handle(update(number))
    collector.handle(update(4))
    collector.close()
    assert str(collector.failure).startswith(f"{tmp_path / METRICS_FILE} cannot be written: ")
    assert [record["update"] for record in read_metrics(tmp_path / METRICS_FILE)] == [1]
    assert [record["update"] for record in collector.state.updates] == [1, 2, 3, 4]
    assert len([record for record in caplog.records if "TensorBoard" in record.message]) == 1


def test_traces_and_event_files_end_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    spans = SpanFile(tmp_path, "learner")
    events = EventFile(tmp_path / TENSORBOARD_FOLDER)
    spans.add("train", 1.0, 2.0)
    spans.flush()
    with no_file_beyond(90):
        for number in range(3):
            spans.add("train", 3.0, 4.0, note="x" * 100)
            spans.flush()
            events.append({"kind": "update", "update": number, "success": 0.5})
    spans.add("train", 5.0, 6.0)
    spans.close()
    events.close()
    said = sorted(record.message.partition(":")[0] for record in caplog.records)
    assert said == ["TensorBoard's numbers end here", "the trace ends here"]
    assert read_spans(tmp_path)["learner"][0] == {
        "name": "train",
        "start": 1.0,
        "end": 2.0,
        "track": "",
    }


def test_where_no_trace_can_be_begun_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spans").write_text("in the way")
    spans = SpanFile(tmp_path, "learner")
    with spans.span("train"):
        pass
    spans.close()
    assert len(caplog.records) == 1
