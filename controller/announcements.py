"""Announcements of the learner, in their order.

They are new weights, and evaluations of the weights before them.

An evaluation measures one version: newer weights wait until its episodes have ended, while training
goes on. The learner is at most as far ahead as it has slots, which are free only once the engines
run what was trained; so nothing that is trained on becomes too old, and a long evaluation costs the
learner a wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from controller.admission import Admission
from protocol.messages import Evaluate, WeightsPublished

log = logging.getLogger(__name__)


class Announcements:
    """A bounded queue of the learner's announcements.

    `longest_seconds`: for how long an evaluation, since it began, may keep new weights from the
    engines; `grant_leases` is called when there are episodes to lease.
    """

    def __init__(
        self,
        admission: Admission,
        max_staleness: int,
        longest_seconds: float,
        grant_leases: Callable[[], Awaitable[None]],
    ) -> None:
        self._admission = admission
        self._longest_seconds = longest_seconds
        self._grant_leases = grant_leases
        self._queue: asyncio.Queue[WeightsPublished | Evaluate] = asyncio.Queue(
            maxsize=2 * (max_staleness + 2)
        )
        self._abandoned: set[int] = set()  # evaluations that nobody waits for
        # by the clock of the event loop: when evaluations that are under way hold weights no more
        self._hold_until = 0.0
        self._evaluations_ended = asyncio.Event()  # unset while weights wait for evaluations
        self._evaluations_ended.set()

    def __len__(self) -> int:
        """Count the announcements that have not been taken up."""
        return self._queue.qsize()

    async def put(self, message: WeightsPublished | Evaluate) -> None:
        """Take a message of the learner's.

        An evaluation without episodes says that nobody waits for it any more, and holds at once.
        """
        if isinstance(message, Evaluate) and not message.episodes:
            self._abandoned.add(message.evaluation)
            self._admission.end_evaluation(message.evaluation)
            self.check_evaluations()
        else:
            await self._queue.put(message)

    async def next_weights(self) -> WeightsPublished:
        """Wait for weights that the engines may load now.

        Admits evaluations that were announced before them.
        """
        message = await self._queue.get()
        while isinstance(message, Evaluate):
            if message.evaluation not in self._abandoned:
                self._hold_until = asyncio.get_running_loop().time() + self._longest_seconds
                self._admission.evaluate(message.evaluation, message.episodes)
                await self._grant_leases()
            message = await self._queue.get()
        await self._await_evaluations()
        return message

    def check_evaluations(self) -> None:
        """Notice the end of the last evaluation's last episode.

        It is to be called after any may have ended.
        """
        if not self._evaluations_ended.is_set() and not self._admission.is_evaluating():
            self._evaluations_ended.set()

    async def _await_evaluations(self) -> None:
        self._evaluations_ended.clear()
        self.check_evaluations()
        try:
            async with asyncio.timeout_at(self._hold_until):
                await self._evaluations_ended.wait()
        except TimeoutError:
            log.warning(
                "an evaluation has not ended within %g s (actor.episode_seconds): new weights "
                "wait for it no more, and its record counts "
                "more than one version (evaluation_versions)",
                self._longest_seconds,
            )
        self._evaluations_ended.set()
