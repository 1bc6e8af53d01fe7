"""`python -m controller JOB [SHARD]` runs the controller of a run, or its shard number SHARD."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

import zmq.asyncio

from config import Job
from controller.controller import build_controller
from controller.shard_worker import build_shard_worker
from protocol.files import allow_many_files
from protocol.output import outlive_readers
from protocol.security import admit_key_holders, load_keys


async def control(job: Job, shard: int) -> int:
    """Serve until SIGTERM, which says that the run is over, or until something in it fails.

    Returns the exit status, which is one of an error, since the supervisor looks at it while the
    run is not over.
    """
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    context = zmq.asyncio.Context()
    try:
        async with admit_key_holders(context, load_keys(job.config.security.keys)):
            if shard:
                await build_shard_worker(job, context, shard).run()
            else:
                await build_controller(job, context).run()
    except asyncio.CancelledError:
        pass
    finally:
        # And not term, which would wait for the sockets of one that could not begin.
        context.destroy(linger=0)
    return 128 + signal.SIGTERM


def main(arguments: list[str]) -> int:
    """Run the process that the arguments, a job's file and perhaps a shard's number, ask for."""
    job = Job.load(Path(arguments[0]))
    shard = 0
    if len(arguments) > 1:
        shard = int(arguments[1])
    return asyncio.run(control(job, shard))


if __name__ == "__main__":
    outlive_readers()  # the log, on a disk that may be full
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    allow_many_files()
    sys.exit(main(sys.argv[1:]))
