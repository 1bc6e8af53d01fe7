"""The same way by Ray's object store.

`ray.put` is in the process of an actor, `ray.get` in that of the learner.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import ray

from benchmarks.transport_paths import IN_FLIGHT, Clock, Speed, Work, keyed

OBJECT_STORE = 512 << 20
"""Bytes: many times what is in flight."""


@ray.remote
class Learner:
    def take(self, reference: list[ray.ObjectRef]) -> None:
        """The reference comes in a list, since Ray would fetch a bare one before the call.

        That it returns is the acknowledgement.
        """
        ray.get(reference[0])

    def cpu(self) -> float:
        return time.process_time()


@ray.remote
class Actor:
    def play(self, work: Work, learner: Any) -> Clock:
        """Deliver all episodes."""
        episodes = work.made()
        clock = Clock(work)
        waiting = []
        for number in range(work.episodes):
            if len(waiting) == IN_FLIGHT:
                _, waiting = ray.wait(waiting)
                clock.acknowledged()
            waiting.append(learner.take.remote([ray.put(keyed(episodes, number))]))
        while waiting:
            _, waiting = ray.wait(waiting)
            clock.acknowledged()
        return clock


def run(work: Work) -> Speed:
    """From one process to the other.

    Ray is started and stopped, so that it takes nothing from the other measurements.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        learner = Learner.remote()
        actor = Actor.remote()
        before: Any = ray.get(learner.cpu.remote())
        clock: Any = ray.get(actor.play.remote(work, learner))
        after: Any = ray.get(learner.cpu.remote())
        return clock.speed(after - before)
    finally:
        ray.shutdown()
