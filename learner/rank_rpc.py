"""The same training on several ranks: rank 0 says what it does next, and the others do it, too."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config import Job
from learner import checkpoint
from learner.ranks import Ranks
from learner.training import Progress, Stopped, Training


def lead_start(ranks: Ranks, job: Job, progress: Progress) -> Training:
    """Begin, or go on from the newest checkpoint (`job.resume`), on all ranks.

    A run that had none yet begins again: what it has logged is then trained on as after any
    checkpoint.
    """
    method = "restore" if job.resume and checkpoint.latest(Path(job.run_dir)) else "begin"
    ranks.tell((method, (), {}))
    return _start(method)(job, progress, ranks)


def lead(ranks: Ranks, training: Training, method: str, *args: Any, **named: Any) -> Any:
    """Call a method of `training` on all ranks; what it returned on this one."""
    ranks.tell((method, args, named))
    return getattr(training, method)(*args, **named)


def dismiss(ranks: Ranks) -> None:
    """The others may end."""
    ranks.tell(None)


def follow(job: Job, ranks: Ranks) -> None:
    """Do what rank 0 does, until it says that it is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides what follows from it
    training = None
    while (word := ranks.tell(None)) is not None:
        method, args, named = word
        if training is None:
            with contextlib.suppress(Stopped):  # then nothing follows
                training = _start(method)(job, _no_progress, ranks)
        else:
            getattr(training, method)(*args, **named)


def _start(method: str) -> Callable[[Job, Progress, Ranks], Training]:
    return Training.restore if method == "restore" else Training.begin


def _no_progress(phase: str, done: float | None = None, of: float | None = None) -> None:
    """Rank 0 shows it."""
