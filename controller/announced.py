"""What the learner has announced, in its order: new weights, and evaluations of the weights before
them.

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


class Announced:
    """A bounded queue.

    `longest_seconds`: for how long an evaluation, since it began, may keep new weights from the
    engines; `hand_out` is called when there are episodes to lease.
    """

    def __init__(
        self,
        admission: Admission,
        max_staleness: int,
        longest_seconds: float,
        hand_out: Callable[[], Awaitable[None]],
    ) -> None:
        self._admission = admission
        self._longest_seconds = longest_seconds
        self._grant_leases = hand_out
        self._queue: asyncio.Queue[WeightsPublished | Evaluate] = asyncio.Queue(
            maxsize=2 * (max_staleness + 2)
        )
        self._given_up: set[int] = set()
        # by the clock of the event loop: when evaluations that are under way hold weights no more
        self._held_until = 0.0
        self._evaluated = asyncio.Event()  # unset while weights wait for evaluations
        self._evaluated.set()

    async def put(self, message: WeightsPublished | Evaluate) -> None:
        """Take a message of the learner's.

        That nobody waits for an evaluation any more holds at once.
        """
        if isinstance(message, Evaluate) and not message.episodes:
            self._given_up.add(message.evaluation)
            self._admission.end_evaluation(message.evaluation)
            self.look()
        else:
            await self._queue.put(message)

    def waiting(self) -> int:
        """Count what has not been taken up."""
        return self._queue.qsize()

    async def next_weights(self) -> WeightsPublished:
        """Wait for weights that the engines may load now; admits evaluations that were announced
        before them."""
        while isinstance(message := await self._queue.get(), Evaluate):
            if message.evaluation not in self._given_up:
                self._held_until = asyncio.get_running_loop().time() + self._longest_seconds
                self._admission.evaluate(message.evaluation, message.episodes)
                await self._grant_leases()
        await self._evaluations_over()
        return message

    def look(self) -> None:
        """Notice the end of the last evaluation's last episode; to be called after any may have
        ended."""
        if not self._evaluated.is_set() and not self._admission.is_evaluating():
            self._evaluated.set()

    async def _evaluations_over(self) -> None:
        self._evaluated.clear()
        self.look()
        try:
            async with asyncio.timeout_at(self._held_until):
                await self._evaluated.wait()
        except TimeoutError:
            log.warning(
                "an evaluation has not ended within %g s (actor.episode_seconds): new weights "
                "wait for it no more, and its record counts "
                "more than one version (evaluation_versions)",
                self._longest_seconds,
            )
        self._evaluated.set()
