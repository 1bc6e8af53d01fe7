"""The process of a learner, or of one of its ranks, from its start to its end."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import zmq.asyncio

from config import ConfigError, Job
from learner.data.drop_ledger import NothingPlayable
from learner.learner import build_learner
from learner.rank_rpc import serve_rank, stop_ranks
from learner.ranks import Ranks
from learner.training_host import TrainingHost, open_instruments
from learner.warm_start.demonstrations import NoDemonstrations
from protocol.files import WriteError, allow_many_files
from protocol.output import outlive_readers
from protocol.security import admit_key_holders, load_keys

USER_ERRORS = (NoDemonstrations, NothingPlayable, WriteError, ConfigError)
"""Errors that the user can mend: their sentence is enough, without a traceback."""


async def learn(job: Job, ranks: Ranks, elapsed_s: float) -> None:
    """Train to the end of the run; on SIGINT, to the end of the update under way."""
    context = zmq.asyncio.Context()
    try:
        async with admit_key_holders(context, load_keys(job.config.security.keys)):
            host = TrainingHost(job, ranks, open_instruments(job))
            learner = build_learner(job, context, host, elapsed_s)
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, learner.stop)
            await learner.run()
    finally:
        context.term()


def start(arguments: list[str]) -> None:
    """Run the process that the arguments, a job's file and perhaps seconds, ask for."""
    outlive_readers()  # the log, on a disk that may be full
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    allow_many_files()
    main(Job.load(Path(arguments[0])), *map(float, arguments[1:]))


def main(job: Job, elapsed_s: float = 0.0) -> None:
    """Train as rank 0, or serve it as another rank."""
    ranks = Ranks.join()
    if ranks.rank:
        serve_rank(job, ranks)
    else:
        try:
            asyncio.run(learn(job, ranks, elapsed_s))
        except* USER_ERRORS as errors:
            # one line, which the supervisor tells
            sys.exit(f"error: {first_error(errors)}")
        stop_ranks(ranks)
    ranks.close()
    if ranks.size > 1:
        _end_now()


def first_error(error: BaseException) -> BaseException:
    """Return the first exception of a group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end_now() -> None:
    """End without Python's own tidying up.

    Threads of gloo may still let go of the last collective's tensors, for which they need Python.
    They are aborted ("terminate called without an active exception") if it is going away just then.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)
