"""`python -m actors JOB`: the fleet of a local run."""

import logging
import sys
from pathlib import Path

from actors.fleet import FleetError, run_fleet
from config import Job
from protocol.output import outlive_readers
from protocol.security import load_keys

CONNECT_SECONDS = 60.0

if __name__ == "__main__":
    outlive_readers()  # the log, on a disk that may be full
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(process)d %(message)s"
    )
    for name in ("httpx", "httpx2"):  # clients of harnesses, which tell of each request
        logging.getLogger(name).setLevel(logging.WARNING)
    job = Job.load(Path(sys.argv[1]))
    endpoint = job.endpoints.actors.replace("0.0.0.0", "127.0.0.1")
    try:
        run_fleet(
            endpoint,
            job.config.actor.count,
            job.config.actor.episodes_per_actor,
            CONNECT_SECONDS,
            load_keys(job.config.security.keys),
        )
    except FleetError as error:
        sys.exit(f"error: {error}")
