"""`python -m controller JOB [SHARD]`: the controller of a run, or one of its other shards (1, 2,
...)."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

import zmq.asyncio

from config import Job
from controller.controller import Controller
from controller.shard_worker import ShardWorker
from protocol.files import allow_many_files
from protocol.output import outlive_readers
from protocol.security import admit_key_holders, load_keys


async def control(job: Job, shard: int) -> int:
    """Until SIGTERM, which says that the run is over, or until something in it fails; its exit
    status, which is one of an error, since the supervisor looks at it while the run is not over."""
    running = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    context = zmq.asyncio.Context()
    try:
        async with admit_key_holders(context, load_keys(job.config.security.keys)):
            await (ShardWorker(job, context, shard) if shard else Controller(job, context)).run()
    except asyncio.CancelledError:
        pass
    finally:
        context.destroy(
            linger=0
        )  # and not term, which would wait for the sockets of one that could not begin
    return 128 + signal.SIGTERM


if __name__ == "__main__":
    outlive_readers()  # the log, on a disk that may be full
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    allow_many_files()
    sys.exit(
        asyncio.run(
            control(Job.load(Path(sys.argv[1])), shard=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        )
    )
