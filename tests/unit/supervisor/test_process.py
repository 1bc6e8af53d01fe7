"""How often a process may be started again, and what is said of one that has failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.process import ChildFailed, RestartLimit, cause_in, error_in, spawn


def test_so_many_restarts_are_allowed_in_a_while_and_more_once_that_is_over():
    restarts = RestartLimit(limit=2, window_s=10.0)
    assert [restarts.allow(now) for now in (0.0, 1.0, 2.0, 9.9)] == [True, True, False, False]
    assert restarts.allow(10.5), "the first one is long ago"
    assert not restarts.allow(10.6)


PLAIN = """INFO begun
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    raise KeyError(1)
KeyError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
    raise ValueError("env.max_turns: too few")
ValueError: env.max_turns: too few
further lines of its message
"""

GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "learner/__main__.py", line 68, in <module>
  |     main()
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "learner/learner.py", line 100, in run
    |     await self._train()
    | OSError: model.safetensors cannot be written
    +------------------------------------
"""

VLLM = """\
(EngineCore pid=7) ERROR 11-30 06:00:00 [core.py:842] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-30 06:00:00 [core.py:842]   File "core.py", line 1, in run
(EngineCore pid=7) ERROR 11-30 06:00:00 [core.py:842] ValueError: no room for KV cache
(APIServer pid=6) Traceback (most recent call last):
(APIServer pid=6)   File "api_server.py", line 1, in <module>
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above. \
Failed core proc(s): {}
"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (PLAIN, "ValueError: env.max_turns: too few"),
        (GROUP, "OSError: model.safetensors cannot be written"),
        (VLLM, "ValueError: no room for KV cache"),
        (
            "usage: server\nserver: error: unrecognized arguments: --bad\n\n",
            "server: error: unrecognized arguments: --bad",
        ),
        (
            "server: error: no such model\nresource_tracker: 1 left\n",
            "server: error: no such model",
        ),
        ("ssh: not found\n", "ssh: not found"),
        ("", ""),
    ],
    ids=["exceptions", "a group of them", "vLLM", "no traceback", "noise", "no error", "nothing"],
)
def test_the_cause_of_a_failure_is_one_line_of_its_log(tmp_path: Path, text: str, cause: str):
    log = tmp_path / "log"
    log.write_text(PLAIN.replace("turns", "history") + text)
    assert cause_in(log, begin=len(PLAIN.replace("turns", "history"))) == cause


@pytest.mark.parametrize(
    ("text", "error"), [(VLLM, "ValueError: no room for KV cache"), ("WARNING: no tcmalloc\n", "")]
)
def test_error_in_a_log_is_no_line_of_a_process_that_still_works(
    tmp_path: Path, text: str, error: str
):
    (tmp_path / "log").write_text(text)
    assert error_in(tmp_path / "log") == error


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        (
            "learner",
            "raise ValueError('learner.groups_per_update: too many')",
            "the learner failed: ValueError: learner.groups_per_update: too many",
        ),
        (
            "engine-1",
            "import os; os.kill(os.getpid(), 9)",
            "if it did, lower engine.kv_cache_gb or engine.max_sequences",
        ),
        (
            "learner",
            "import logging, sys\ntry:\n    {}['nope']\nexcept KeyError:\n    "
            "logging.exception('task 1')\n"
            "sys.exit('error: nothing can be played')",
            "the learner failed: nothing can be played",
        ),
        ("controller", "import sys; sys.exit(3)", "the controller ended with status 3"),
    ],
)
def test_a_process_that_failed_is_told_of_with_its_cause_first_and_then_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str, said: str
):
    (tmp_path / "their_program.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log = tmp_path / "log"
    log.write_text(PLAIN if name != "controller" else "")
    child = spawn(name, ["their_program"], log)
    child.process.wait(60)
    with pytest.raises(ChildFailed) as failed:
        child.check()
    cause, where = str(failed.value).splitlines()
    assert said in cause and where == f"its log: {log}"
