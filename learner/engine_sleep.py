"""Engines that sleep while an update is computed, on a GPU that does not hold both."""

from __future__ import annotations

import asyncio

from learner.publish import MessageSender
from protocol.messages import SleepEngines


class EngineSleep:
    """Requests of the learner for the engines' sleep, and the controller's answers."""

    def __init__(self, controller: MessageSender) -> None:
        self._controller = controller
        self._answer: asyncio.Future[None] | None = None

    async def set_asleep(self, asleep: bool) -> None:
        """Return when the engines have given up the memory of their GPUs, or have it back."""
        self._answer = asyncio.get_running_loop().create_future()
        await self._controller.send(SleepEngines(asleep=asleep))
        await self._answer

    def note_answer(self) -> None:
        """Take the controller's word that the engines are as asked."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
