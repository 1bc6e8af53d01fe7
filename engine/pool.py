"""The engines of a controller: a turn goes to the one with the fewest turns, new weights to all of
them.

                 a call fails                      no answer for DEAD_AFTER seconds
    healthy ─────────────────────▶ suspect ────────────────────────────────────────▶ dead
       ▲                              │ it answers, and has loaded the newest weights   │
       └──────────────────────────────┴─────────────────────────────────────────────────┘

A suspect engine gets no further turns, and what it has may still come; the turns of a dead one are
to be sampled elsewhere. Updates wait for neither. So whatever gets turns runs the newest weights
that were applied; but for one that was started again while no call was there to fail, which is
found out by what it answers (`check_weights`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engine.client import EngineClient
from engine.connection import EngineError, EngineUnreachable
from engine.constants import UNKNOWN_VERSION
from engine.weight_update import apply_weights, receive_weights
from protocol.messages import Span, Transfer

log = logging.getLogger(__name__)

PROBE_EVERY = 1.0
PROBE_SECONDS = 5.0
"""In which an engine is to say that it is well."""
DEAD_AFTER = 15.0
WATCH_EVERY = 10.0
"""Seconds between two questions to an engine that is healthy: one that is gone is found out though
no call is there to fail."""


class Health(StrEnum):
    """What is thought of an engine."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"


class Weights(NamedTuple):
    """What engines are to run."""

    path: str
    version: int
    checksum: str
    deadline: float  # seconds


@dataclass
class _Entry:
    """An engine in the ledger."""

    client: EngineClient
    health: Health = Health.HEALTHY
    turns: set[asyncio.Timeout] = field(default_factory=set)  # each ends when it is due
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)
    forgotten: bool = False  # the version that an earlier run has left
    why: str = ""  # it is not healthy
    doubted: bool = False  # its model computed no numbers


class EnginePool:
    """All healthy engines run the same weights.

    Safe to use from any number of tasks of one event loop.
    """

    def __init__(
        self, urls: Sequence[str], patience: float = inf, key: str = "", run: str = ""
    ) -> None:
        """`patience`: seconds without any healthy engine after which `check` gives up.

        `key`: of all engines. `run`: who uses them.
        """
        self._entries = {
            client: _Entry(client) for client in (EngineClient(url, key, run) for url in urls)
        }
        self._patience = patience
        self._healthy = asyncio.Event()  # there is one
        self._healthy.set()
        self._last_healthy = time.monotonic()
        self._weights: Weights | None = None
        self._received: int | None = None  # version that came over NCCL
        self._recovering: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[EngineClient]:
        return iter(self._entries)

    def healthy(self) -> list[EngineClient]:
        """Those that get turns."""
        return [entry.client for entry in self._well()]

    def status(self) -> dict[str, tuple[Health, int]]:
        """Address of each engine -> what is thought of it, and the turns it has."""
        return {
            entry.client.url: (entry.health, len(entry.turns)) for entry in self._entries.values()
        }

    def check(self) -> None:
        """Raises EngineError when no engine has been healthy for `patience` seconds, or one was
        given to another run: this one was silent for too long (stopped, or frozen), and what it
        goes on with would be the other's."""
        for engine in self:
            if engine.taken is not None:
                raise engine.taken
        silent = 0.0 if self._healthy.is_set() else time.monotonic() - self._last_healthy
        if silent > self._patience:
            each = "; ".join(f"{entry.client.url}: {entry.why}" for entry in self._entries.values())
            raise EngineError(
                f"no engine has been fit for turns for {silent:.0f} s (engine.start_seconds): "
                f"{each}"
            )

    @contextlib.asynccontextmanager
    async def acquire(self, but: EngineClient | None = None) -> AsyncIterator[EngineClient]:
        """A healthy engine, the one with the fewest turns, for one turn, once there is one; not
        `but`, if there is another. Raises EngineUnreachable in the middle of the turn if the engine
        is found to be dead."""
        while not (healthy := self._well()):
            await self._healthy.wait()
        others = [entry for entry in healthy if entry.client is not but]
        entry = min(others or healthy, key=lambda entry: len(entry.turns))
        turn = asyncio.timeout(None)
        try:
            async with turn:
                entry.turns.add(turn)
                yield entry.client
        except TimeoutError:
            if not turn.expired():
                raise
            raise EngineUnreachable(
                f"the engine at {entry.client.url} has not answered for {DEAD_AFTER:g} s"
            ) from None
        finally:
            entry.turns.discard(turn)

    def mark_suspect(self, engine: EngineClient, why: str) -> None:
        """It failed a call: no turns for it until it has answered, and has the newest weights."""
        entry = self._entries[engine]
        if entry.health is not Health.HEALTHY:
            return
        log.warning("the engine at %s is suspect: %s", engine.url, why)
        entry.why = why
        entry.health = Health.SUSPECT
        if not self._well():
            self._healthy.clear()
            self._last_healthy = time.monotonic()
        task = asyncio.get_running_loop().create_task(self._recover(entry))
        self._recovering.add(task)
        task.add_done_callback(self._recovering.discard)

    async def check_finite(self, engine: EngineClient, why: str) -> None:
        """Its model computed NaN or infinity in a turn: it becomes suspect if it does so whatever
        it is asked."""
        if await _computes(engine) is False:
            self._entries[engine].doubted = True
            self.mark_suspect(
                engine,
                f"{why}, as of anything else: its weights hold such, or overflow in engine.dtype",
            )

    async def watch(self) -> None:
        """Forever: find out which engines are gone."""
        while True:
            await asyncio.sleep(WATCH_EVERY)
            healthy = self.healthy()
            for engine, answers in zip(
                healthy, await asyncio.gather(*map(_answers, healthy)), strict=True
            ):
                if not answers:
                    self.mark_suspect(engine, "it does not answer")

    def check_weights(self, engine: EngineClient, spans: Iterable[Span]) -> None:
        """Of a response.

        Raises EngineError if any of it came from what the engine was started with, though it has
        been given weights.
        """
        given = self._weights is not None or self._received is not None
        if given and any(span.version == UNKNOWN_VERSION for span in spans):
            raise EngineError(
                f"the engine at {engine.url} has lost the weights that it was given: it must "
                "have been started again"
            )

    @contextlib.asynccontextmanager
    async def suspect_on_failure(self, engine: EngineClient) -> AsyncIterator[None]:
        """An engine that gives no answer inside, or that refuses and is not well (vLLM's server may
        outlive its core), becomes suspect, and that is all; the refusal of one that is well is
        raised."""
        try:
            yield
        except (EngineError, TimeoutError) as error:
            if type(error) is EngineError and await _answers(engine):
                raise
            self.mark_suspect(engine, str(error) or "no answer in time")

    async def apply_weights(
        self, path: str, version: int, checksum: str, *, deadline: float, verify: bool = False
    ) -> float:
        """As `weights.apply_weights`, for all healthy engines at once, until there is one that runs
        them; the longest time that one of them stood still. An engine that does not answer becomes
        suspect; raises EngineError when one that is well refuses."""
        self._weights = Weights(path, version, checksum, deadline)
        seconds = await _all(self._update(entry, self._weights, verify) for entry in self._well())
        await self._healthy.wait()
        return max(seconds, default=0.0)

    async def init_nccl_group(self, endpoint: str, *, deadline: float) -> None:
        """All engines meet the learner at `endpoint` (tcp://host:port), for `receive_weights`.

        Raises EngineError after `deadline` seconds, or when an engine refuses or has several
        workers.
        """
        place = urlsplit(endpoint)
        size = 1 + len(self._entries)
        try:
            async with asyncio.timeout(deadline):
                for engine, workers in zip(
                    self, await _all(engine.count_workers() for engine in self), strict=True
                ):
                    if workers != 1:  # the learner counts on as many ranks as it knows of engines
                        raise EngineError(
                            "engine.weights: nccl is for engines of one worker, and "
                            f"{engine.url} has {workers}"
                        )
                await _all(
                    engine.init_nccl_group(place.hostname, place.port, rank, size)
                    for rank, engine in enumerate(self, 1)
                )
        except TimeoutError:
            raise EngineError(
                f"learner and engines did not meet at {endpoint} within {deadline:g} s "
                "(engine.update_seconds)"
            ) from None

    async def receive_weights(self, transfer: Transfer, version: int, *, deadline: float) -> float:
        """As `weights.receive_weights`, for all engines at once; the longest time that one of them
        stood still. Raises EngineError when one fails: what is sent once, all must receive."""
        seconds = max(
            await _all(
                receive_weights(engine, transfer, version, deadline=deadline) for engine in self
            )
        )
        self._received = version
        return seconds

    async def close(self) -> None:
        for task in list(self._recovering):
            task.cancel()
        await asyncio.gather(*self._recovering, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in self))

    def _well(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.health is Health.HEALTHY]

    async def _forget(self, entry: _Entry) -> None:
        """Once, before the first weights: those of an earlier run may have the same number.

        Raises EngineError or TimeoutError.
        """
        if not entry.forgotten:
            async with asyncio.timeout(PROBE_SECONDS):
                await entry.client.reset_version()
            entry.forgotten = True

    async def _update(self, entry: _Entry, weights: Weights, verify: bool) -> float:
        async with entry.updating, self.suspect_on_failure(entry.client):
            await self._forget(entry)
            return await apply_weights(
                entry.client,
                *weights[:3],
                deadline=weights.deadline,
                patience=PROBE_SECONDS,
                verify=verify,
            )
        return 0.0

    async def _recover(self, entry: _Entry) -> None:
        """Until the engine is healthy again."""
        since = time.monotonic()
        while not (
            await _answers(entry.client)
            and await self._brought_up_to_date(entry)
            and await self._sound(entry)
        ):
            if entry.health is Health.SUSPECT and time.monotonic() - since > DEAD_AFTER:
                log.warning(
                    "the engine at %s is dead: its %d turns go to others",
                    entry.client.url,
                    len(entry.turns),
                )
                entry.health = Health.DEAD
                for turn in entry.turns:
                    turn.reschedule(asyncio.get_running_loop().time())
            await asyncio.sleep(PROBE_EVERY)
        if entry.health is Health.DEAD:
            log.warning("the engine at %s is back", entry.client.url)
        entry.health = Health.HEALTHY
        self._healthy.set()

    async def _sound(self, entry: _Entry) -> bool:
        """Say whether its model computes numbers, of which one was in doubt.

        If not, it is to load its weights again.
        """
        if not entry.doubted:
            return True
        entry.doubted = await _computes(entry.client) is not True
        if entry.doubted and self._weights is not None:
            with contextlib.suppress(EngineError):
                await entry.client.reset_version()
        return not entry.doubted

    async def _brought_up_to_date(self, entry: _Entry) -> bool:
        """Say whether it runs the newest weights now."""
        if self._received is not None:  # one that has lost what was sent cannot get it again
            return await _version(entry.client) == self._received
        weights = self._weights
        if weights is None:
            return True
        async with entry.updating:
            try:
                await self._forget(entry)
                await apply_weights(
                    entry.client, *weights[:3], deadline=weights.deadline, patience=0.0, verify=True
                )
            except (
                EngineError,
                TimeoutError,
            ) as error:  # newer ones may have replaced the file: then those are next
                log.warning(
                    "weights of version %d for an engine that is back: %s",
                    weights.version,
                    error or "no answer in time",
                )
                return False
        return weights is self._weights


async def _version(engine: EngineClient) -> int | None:
    try:
        return await engine.weight_version()
    except EngineError:
        return None


async def _all(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What they return.

    When one fails, the others are cancelled, and have ended before its error is raised: each
    resumes its engine.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _answers(engine: EngineClient) -> bool:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await engine.health()
    except TimeoutError:
        return False


async def _computes(engine: EngineClient) -> bool | None:
    """Say whether its model computes numbers; None where it did not say in time."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await engine.computes_finite()
    except (EngineError, TimeoutError):
        return None
