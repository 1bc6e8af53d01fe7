"""Output that nobody reads, or for which there is no room, ends no command and holds none up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.lifetime import describe_end, dying_with_parent
from supervisor.endpoints import free_port
from tests.fixtures import ROOT

CLOSED_READER = "closed reader"


def printed(*arguments: str, stdout: str) -> tuple[int, str]:
    """Return the exit status and the errors of a command.

    Its standard output is a file, is closed (""), or has a reader that has gone.
    """
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    if stdout.startswith("/"):
        os.close(writing)
        writing = os.open(stdout, os.O_WRONLY)
    done = subprocess.run(
        command,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: os.close(1)) if not stdout else None,
    )
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--dry-run"], ["play", "--watch", "expert"]],
    ids=lambda given: given[0],
)
@pytest.mark.parametrize(
    ("stdout", "status"),
    [(CLOSED_READER, 0), ("/dev/full", 1), ("", 0)],
    ids=["gone", "full", "closed"],
)
def test_command_whose_output_cannot_be_written_says_so_unless_the_pipe_closed(
    arguments: list[str], stdout: str, status: int
) -> None:
    """A command whose output cannot be written says so in a sentence unless nobody wants it."""
    said = "error: the output cannot be written: No space left on device\n" if status else ""
    assert printed(*arguments, stdout=stdout) == (status, said)


@pytest.mark.slow
def test_a_file_opened_by_a_command_does_not_take_the_place_of_its_closed_output(
    tmp_path: Path,
) -> None:
    assert printed("keys", str(tmp_path / "keys"), "host", stdout="") == (0, "")
    assert not [
        file
        for file in (tmp_path / "keys").rglob("*")
        if file.is_file() and b"made " in file.read_bytes()
    ]


PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from protocol.output import outlive_readers, drop_unread_output
outlive_readers()
with drop_unread_output():
    for _ in range(4):  # more than a pipe has room for
        print("x" * 40_000, flush=True)
print("went on", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_does_not_read_holds_nobody_up(blocking: bool) -> None:
    """A reader that does not read holds nobody up.

    It is a pager nobody scrolls in, or a terminal after Ctrl-S; the output may be one that another
    program has made non-blocking.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "went on\n")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (1, "ended with status 1"),
        (-signal.SIGKILL, "was killed (SIGKILL, as the system does when memory runs out)"),
        (128 + signal.SIGKILL, "was killed (SIGKILL, as the system does when memory runs out)"),
        (-signal.SIGSEGV, "was killed (SIGSEGV)"),
        (128 + signal.SIGTERM, "was told to end (SIGTERM)"),
        (255, "ended with status 255"),
        (-40, "was killed (signal 40)"),
    ],
)
def test_the_end_of_a_process_is_said_in_words(status: int, words: str) -> None:
    assert describe_end(status) == words


@pytest.mark.slow
def test_terminal_that_goes_away_ends_a_server_as_ctrl_c_does() -> None:
    """A terminal that goes away ends a server as Ctrl-C does in the middle of requests."""
    port = free_port()
    command = [sys.executable, str(ROOT / "run.py"), "retriever", "--port", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=dying_with_parent()
    )
    answered = threading.Semaphore(0)

    def ask_until_it_ends() -> None:
        while server.poll() is None:
            with contextlib.suppress(OSError):  # an answer that is an error is one, too
                urllib.request.urlopen(f"http://127.0.0.1:{port}/nothing", timeout=20)
            answered.release()

    with contextlib.closing(server.stdout), ThreadPoolExecutor(4) as asking:
        try:
            assert b"Ctrl-C ends it" in server.stdout.readline()
            for _ in range(4):
                asking.submit(ask_until_it_ends)
            assert all(answered.acquire(timeout=20) for _ in range(20))
            server.send_signal(signal.SIGHUP)
            assert server.wait(20) in (0, 130)
            assert server.stdout.read() == b""
        finally:
            server.kill()


@pytest.mark.slow
def test_files_are_read_as_utf_8_whatever_the_encoding_of_the_locale(tmp_path: Path) -> None:
    settings = tmp_path / "settings é.toml"
    settings.write_text('[run]\ncache_dir = "über"\n', encoding="utf-8")
    asked = [
        sys.executable,
        str(ROOT / "run.py"),
        "--dry-run",
        "--config",
        str(settings),
        "--run.dir",
        "läufe",
    ]
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        asked,
        capture_output=True,
        env={**os.environ, **ascii_alone},
        preexec_fn=dying_with_parent(),
    )
    assert done.returncode == 0, done.stderr
    assert 'cache_dir = "über"' in done.stdout.decode() and 'dir = "läufe"' in done.stdout.decode()


def test_a_python_without_our_libraries_is_told_what_to_do(tmp_path: Path) -> None:
    bare = [sys.executable, "-S", str(ROOT / "run.py"), "--help"]
    done = subprocess.run(bare, capture_output=True, text=True, preexec_fn=dying_with_parent())
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is not installed for" in done.stderr and ".venv/bin/activate" in done.stderr
