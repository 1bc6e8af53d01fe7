"""`python -m learner JOB [SECONDS]`: the learner of a run; with torchrun's variables in the
environment, one of its ranks.

SECONDS: what the run had lasted before. The limit run.minutes counts them.
"""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import zmq.asyncio

from config import ConfigError, Job
from learner.data.drop_ledger import NothingPlayable
from learner.learner import Learner
from learner.rank_rpc import dismiss, follow
from learner.ranks import Ranks
from learner.warm_start.demonstrations import NoDemonstrations
from protocol.files import WriteError, allow_many_files
from protocol.output import outlive_readers
from protocol.security import admit_key_holders, load_keys


async def learn(job: Job, ranks: Ranks, lasted_seconds: float) -> None:
    """To the end of the run. SIGINT: to the end of the update under way."""
    context = zmq.asyncio.Context()
    try:
        async with admit_key_holders(context, load_keys(job.config.security.keys)):
            learner = Learner(job, context, ranks, lasted_seconds)
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, learner.stop)
            await learner.run()
    finally:
        context.term()


def main(job: Job, lasted_seconds: float = 0.0) -> None:
    ranks = Ranks.join()
    if ranks.rank:
        follow(job, ranks)
    else:
        try:
            asyncio.run(learn(job, ranks, lasted_seconds))
        except* (
            NothingPlayable,
            NoDemonstrations,
            WriteError,
            ConfigError,
        ) as errors:  # one line, which the supervisor tells
            sys.exit(f"error: {_first(errors)}")
        dismiss(ranks)
    ranks.leave()
    if ranks.size > 1:
        _end_now()


def _first(error: BaseException) -> BaseException:
    """The first exception of a group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end_now() -> None:
    """End without Python's own tidying up: threads of gloo may still let go of the last
    collective's tensors, for which they need Python, and are aborted ("terminate called without an
    active exception") if it is going away just then."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    outlive_readers()  # the log, on a disk that may be full
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    allow_many_files()
    main(Job.load(Path(sys.argv[1])), *map(float, sys.argv[2:]))
