"""Announcements of the learner, in their order.

They are new weights, and evaluations of the weights before them.

An evaluation is of one version (invariant 13): newer weights wait until its episodes have ended,
while training goes on. The learner is at most as far ahead as it has slots, which are free only
once the engines run what was trained; so nothing that is trained on becomes too old, and a long
evaluation costs the learner a wait.

Nothing waits for ever. An evaluation's episodes need no weights but those that the engines have,
and no update: each ends, or is dropped when its leases are used up, whatever the learner does. If
none of them ends for as long as one may take, those that are left are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from controller.admission import Admission
from protocol.messages import EpisodeKey, Evaluate, WeightsPublished

log = logging.getLogger(__name__)


class Announcements:
    """A bounded queue of the learner's announcements.

    `patience_s`: seconds for which weights wait for an evaluation of which no episode ends;
    `grant_leases` is called when there are episodes to lease.
    """

    def __init__(
        self,
        admission: Admission,
        max_staleness: int,
        patience_s: float,
        grant_leases: Callable[[], Awaitable[None]],
    ) -> None:
        self._admission = admission
        self._patience_s = patience_s
        self._grant_leases = grant_leases
        self._queue: asyncio.Queue[WeightsPublished | Evaluate] = asyncio.Queue(
            maxsize=2 * (max_staleness + 2)
        )
        self._abandoned: set[int] = set()  # evaluations that nobody waits for
        self._left = 0  # episodes of evaluations that had not ended when they were counted last
        self._any_ended = asyncio.Event()  # since they were

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

    async def next_weights(
        self, on_dropped: Callable[[Sequence[EpisodeKey]], Awaitable[None]]
    ) -> WeightsPublished:
        """Wait for weights that the engines may load now.

        Admits evaluations that were announced before them. `on_dropped` is called with episodes
        that are waited for no more.
        """
        message = await self._queue.get()
        while isinstance(message, Evaluate):
            if message.evaluation not in self._abandoned:
                self._admission.evaluate(message.evaluation, message.episodes)
                await self._grant_leases()
            message = await self._queue.get()
        await self._await_evaluations(on_dropped)
        return message

    def check_evaluations(self) -> None:
        """Notice the ends of evaluations' episodes; to be called after any may have ended."""
        left = self._admission.evaluation_episodes_left()
        if left < self._left:
            self._any_ended.set()
        self._left = left

    async def _await_evaluations(
        self, on_dropped: Callable[[Sequence[EpisodeKey]], Awaitable[None]]
    ) -> None:
        self._left = self._admission.evaluation_episodes_left()
        while self._left:
            self._any_ended.clear()
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._any_ended.wait()
            except TimeoutError:
                await on_dropped(self._give_up())

    def _give_up(self) -> list[EpisodeKey]:
        """End the evaluations that are under way; returns their episodes that had not ended."""
        dropped = [
            key
            for evaluation in self._admission.evaluations_under_way()
            for key in self._admission.end_evaluation(evaluation)
        ]
        log.warning(
            "no episode of an evaluation has ended for %g s (actor.episode_seconds): new weights "
            "wait for it no more, and the %d episodes that are left are dropped",
            self._patience_s,
            len(dropped),
        )
        self._left = 0
        return dropped
