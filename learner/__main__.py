"""`python -m learner JOB`: the learner of a run."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

import zmq.asyncio

from config import Job
from learner.main import Learner


async def learn(job: Job) -> None:
    """To the end of the run. SIGINT: to the end of the update under way."""
    context = zmq.asyncio.Context()
    learner = Learner(job, context)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, learner.stop)
    try:
        await learner.run()
    finally:
        context.term()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(learn(Job.load(Path(sys.argv[1]))))
