"""The engines of a controller: each turn goes to the least busy one, new weights to all.

                 a call fails                        no answer for DEAD_AFTER_S
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
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engine.client import EngineClient
from engine.connection import EngineError, EngineUnreachable
from engine.constants import UNKNOWN_VERSION
from engine.plugin.file_check import FileIdentity
from engine.weight_update import update_engine, update_engine_nccl
from protocol.messages import Span, Transfer

log = logging.getLogger(__name__)

PROBE_EVERY_S = 1.0
"""Seconds between two questions to an engine that is not healthy."""
PROBE_TIMEOUT_S = 5.0
"""Seconds in which an engine is to say that it is well."""
DEAD_AFTER_S = 15.0
"""Seconds without an answer after which a suspect engine is dead."""
WATCH_EVERY_S = 10.0
"""Seconds between two questions to a healthy engine.

So one that is gone is found out though no call is there to fail.
"""


class Health(StrEnum):
    """State of an engine, as its calls show it."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"


class WeightUpdate(NamedTuple):
    """Weights that the engines are to run."""

    path: str
    version: int
    checksum: str
    deadline: float  # seconds


@dataclass
class _Entry:
    """An engine in the ledger."""

    client: EngineClient
    health: Health = Health.HEALTHY
    turn_timeouts: set[asyncio.Timeout] = field(default_factory=set)  # each ends a turn when due
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while it sleeps, too
    version_reset: bool = False  # it has forgotten the version that an earlier run has left
    why: str = ""  # it is not healthy
    suspected_nan: bool = False  # its model computed NaN or infinity


class EnginePool:
    """The engines of a run; all healthy ones run the same weights.

    It is safe to use from any number of tasks of one event loop.
    """

    def __init__(
        self, urls: Sequence[str], no_engine_patience_s: float = inf, key: str = "", run: str = ""
    ) -> None:
        """`no_engine_patience_s`: seconds without any healthy engine after which `check` gives up.

        `key` is that of all engines, and `run` claims them.
        """
        clients = [EngineClient(url, key, run) for url in urls]
        self._entries = {client: _Entry(client) for client in clients}
        self._no_engine_patience_s = no_engine_patience_s
        self._any_healthy = asyncio.Event()
        self._any_healthy.set()
        self._last_healthy = time.monotonic()
        self._weights: WeightUpdate | None = None
        self._received: int | None = None  # version that came over NCCL
        self._file_checks: dict[str, asyncio.Task[FileIdentity]] = {}  # host -> of the newest file
        self._recovering: set[asyncio.Task[None]] = set()
        self._asleep: list[_Entry] = []  # engines that were put to sleep
        self._awake_since = -inf  # no engine has slept

    def __iter__(self) -> Iterator[EngineClient]:
        return iter(self._entries)

    def healthy(self) -> list[EngineClient]:
        """List the engines that get turns."""
        return [entry.client for entry in self._healthy()]

    def status(self) -> dict[str, tuple[Health, int]]:
        """Return address of each engine -> its health, and how many turns it has."""
        return {
            entry.client.url: (entry.health, len(entry.turn_timeouts))
            for entry in self._entries.values()
        }

    def check(self) -> None:
        """Raise EngineError when the run cannot go on with its engines.

        No engine has been healthy for `no_engine_patience_s`. Or one was given to another run,
        since this one was silent for too long (stopped, or frozen). What it goes on with would be
        the other's.
        """
        for engine in self:
            if engine.taken is not None:
                raise engine.taken
        if self._any_healthy.is_set():
            return
        silent = time.monotonic() - self._last_healthy
        if silent > self._no_engine_patience_s:
            each = "; ".join(f"{entry.client.url}: {entry.why}" for entry in self._entries.values())
            raise EngineError(
                f"no engine has been fit for turns for {silent:.0f} s (engine.start_seconds): "
                f"{each}"
            )

    @contextlib.asynccontextmanager
    async def acquire(self, but: EngineClient | None = None) -> AsyncIterator[EngineClient]:
        """Wait for a healthy engine, and have the one with the fewest turns for one turn.

        It is not `but`, if there is another. Raises EngineUnreachable in the middle of the turn if
        the engine is found to be dead.
        """
        while not self._healthy():
            await self._any_healthy.wait()
        healthy = self._healthy()
        others = [entry for entry in healthy if entry.client is not but]
        entry = min(others or healthy, key=lambda entry: len(entry.turn_timeouts))
        turn_timeout = asyncio.timeout(None)
        try:
            async with turn_timeout:
                entry.turn_timeouts.add(turn_timeout)
                yield entry.client
        except TimeoutError:
            if not turn_timeout.expired():
                raise
            raise EngineUnreachable(
                f"the engine at {entry.client.url} has not answered for {DEAD_AFTER_S:g} s"
            ) from None
        finally:
            entry.turn_timeouts.discard(turn_timeout)

    def mark_suspect(self, engine: EngineClient, why: str) -> None:
        """Note that an engine failed a call.

        It gets no turns until it has answered, and has the newest weights.
        """
        entry = self._entries[engine]
        if entry.health is not Health.HEALTHY:
            return
        log.warning("the engine at %s is suspect: %s", engine.url, why)
        entry.why = why
        entry.health = Health.SUSPECT
        if not self._healthy():
            self._any_healthy.clear()
            self._last_healthy = time.monotonic()
        task = asyncio.get_running_loop().create_task(self._recover(entry))
        self._recovering.add(task)
        task.add_done_callback(self._recovering.discard)

    async def check_finite(self, engine: EngineClient, why: str) -> None:
        """Suspect an engine if its model computes NaN or infinity whatever it is asked.

        It did so in a turn, for the reason `why`.
        """
        if await _computes(engine) is False:
            self._entries[engine].suspected_nan = True
            self.mark_suspect(
                engine,
                f"{why}, as of anything else: its weights hold such, or overflow in engine.dtype",
            )

    async def watch(self) -> None:
        """Find out which engines are gone, forever."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            healthy = self.healthy()
            for engine, answers in zip(
                healthy, await asyncio.gather(*map(_answers, healthy)), strict=True
            ):
                if not answers:
                    self.mark_suspect(engine, "it does not answer")

    def check_weights(self, engine: EngineClient, spans: Iterable[Span]) -> None:
        """Raise EngineError if a response came from weights that the engine was started with.

        It has been given others, so that it must have lost them.
        """
        given = self._weights is not None or self._received is not None
        if given and any(span.version == UNKNOWN_VERSION for span in spans):
            raise EngineError(
                f"the engine at {engine.url} has lost the weights that it was given: it must "
                "have been started again"
            )

    @contextlib.asynccontextmanager
    async def suspect_on_failure(self, engine: EngineClient) -> AsyncIterator[None]:
        """Suspect an engine that fails inside, and go on.

        It gives no answer, or it refuses and is not well: vLLM's server may outlive its core. The
        refusal of an engine that is well is raised.
        """
        try:
            yield
        except (EngineError, TimeoutError) as error:
            if type(error) is EngineError and await _answers(engine):
                raise
            self.mark_suspect(engine, str(error) or "no answer in time")

    async def apply_weights(
        self, path: str, version: int, checksum: str, *, deadline: float, verify: bool = False
    ) -> float:
        """Make all healthy engines run new weights, as `weight_update.update_engine` does.

        Waits until there is one that runs them. Returns the longest time in seconds that one of
        them stood still. An engine that does not answer becomes suspect. Raises EngineError when
        one that is well refuses.
        """
        self._weights = WeightUpdate(path, version, checksum, deadline)
        self._file_checks = {}
        seconds = await _gather(
            self._update(entry, self._weights, verify) for entry in self._healthy()
        )
        await self._any_healthy.wait()
        return max(seconds, default=0.0)

    async def init_nccl_group(self, endpoint: str, *, deadline: float) -> None:
        """Have all engines meet the learner at `endpoint` (tcp://host:port).

        `receive_weights` needs that.

        Raises EngineError after `deadline` seconds, or when an engine refuses or has several
        workers.
        """
        place = urlsplit(endpoint)
        if place.hostname is None or place.port is None:
            raise ValueError(f"{endpoint} is not of the form tcp://host:port")
        host = place.hostname
        port = place.port
        size = 1 + len(self._entries)
        try:
            async with asyncio.timeout(deadline):
                for engine, workers in zip(
                    self, await _gather(engine.count_workers() for engine in self), strict=True
                ):
                    if workers != 1:  # the learner counts on as many ranks as it knows of engines
                        raise EngineError(
                            "engine.weights: nccl is for engines of one worker, and "
                            f"{engine.url} has {workers}"
                        )
                await _gather(
                    engine.init_nccl_group(host, port, rank, size)
                    for rank, engine in enumerate(self, 1)
                )
        except TimeoutError:
            raise EngineError(
                f"learner and engines did not meet at {endpoint} within {deadline:g} s "
                "(engine.update_seconds)"
            ) from None

    async def receive_weights(self, transfer: Transfer, version: int, *, deadline: float) -> float:
        """Make all engines run the weights that the learner sends over NCCL.

        Returns the longest time in seconds that one of them stood still. Raises EngineError when
        one fails: what is sent once, all must receive.
        """
        seconds = max(
            await _gather(
                update_engine_nccl(engine, transfer, version, deadline=deadline) for engine in self
            )
        )
        self._received = version
        return seconds

    async def sleep(self) -> None:
        """Have all engines give up their GPU's memory, once none is loading weights.

        None loads any before `wake_up`. An engine that does not answer becomes suspect. Raises
        EngineError when one that is well refuses.
        """
        for entry in self._entries.values():
            await entry.updating.acquire()
            self._asleep.append(entry)
        await _gather(self._switch(entry, EngineClient.sleep) for entry in self._healthy())

    async def wake_up(self) -> None:
        """Have all engines take their memory back, and let turns go on.

        An engine that does not answer becomes suspect. Raises EngineError when one refuses.
        """
        await _gather(self._switch(entry, EngineClient.wake_up) for entry in self._healthy())
        self._awake_since = time.monotonic()
        while self._asleep:
            self._asleep.pop().updating.release()

    def awake_since(self) -> float:
        """Return since when engines are awake, a time of the monotonic clock; now, if they sleep.

        No turn makes progress before.
        """
        if self._asleep:
            return time.monotonic()
        return self._awake_since

    async def _switch(
        self, entry: _Entry, call: Callable[[EngineClient], Coroutine[Any, Any, None]]
    ) -> None:
        async with self.suspect_on_failure(entry.client):
            await call(entry.client)

    async def close(self) -> None:
        """Close the clients, and wait for no engine any more."""
        tasks = [*self._recovering, *self._file_checks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in self))

    def _healthy(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.health is Health.HEALTHY]

    async def _reset_version(self, entry: _Entry) -> None:
        """Have an engine forget its version once, before the first weights.

        Those of an earlier run may have the same number. Raises EngineError or TimeoutError.
        """
        if not entry.version_reset:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await entry.client.reset_version()
            entry.version_reset = True

    async def _update(self, entry: _Entry, weights: WeightUpdate, verify: bool) -> float:
        async with entry.updating, self.suspect_on_failure(entry.client):
            await self._reset_version(entry)
            return await update_engine(
                entry.client,
                weights.path,
                weights.version,
                weights.checksum,
                deadline=weights.deadline,
                answer_patience_s=PROBE_TIMEOUT_S,
                verify=verify,
                check=functools.partial(self._check_file, entry.client, weights),
            )
        return 0.0

    async def _check_file(self, engine: EngineClient, weights: WeightUpdate) -> FileIdentity:
        """Have the file of weights hashed once on the machine of an engine.

        Another engine there may have been asked. If that does not answer, this one is.
        """
        host = urlsplit(engine.url).hostname or ""
        asked = self._file_checks.get(host)
        if asked is not None:
            with contextlib.suppress(EngineUnreachable):
                return await asyncio.shield(asked)
        call = engine.check_weights(weights.path, weights.checksum)
        own = asyncio.get_running_loop().create_task(call)
        self._file_checks[host] = own
        # Whoever waits for it may be out of time, and others are not.
        return await asyncio.shield(own)

    async def _recover(self, entry: _Entry) -> None:
        """Wait until the engine is healthy again, and note when it is dead."""
        since = time.monotonic()
        while not (
            await _answers(entry.client)
            and await self._bring_up_to_date(entry)
            and await self._recheck_finite(entry)
        ):
            if entry.health is Health.SUSPECT and time.monotonic() - since > DEAD_AFTER_S:
                log.warning(
                    "the engine at %s is dead: its %d turns go to others",
                    entry.client.url,
                    len(entry.turn_timeouts),
                )
                entry.health = Health.DEAD
                for turn_timeout in entry.turn_timeouts:
                    turn_timeout.reschedule(asyncio.get_running_loop().time())
            await asyncio.sleep(PROBE_EVERY_S)
        if entry.health is Health.DEAD:
            log.warning("the engine at %s is back", entry.client.url)
        entry.health = Health.HEALTHY
        self._any_healthy.set()

    async def _recheck_finite(self, entry: _Entry) -> bool:
        """Say whether a model that is suspected of computing NaN computes numbers.

        If not, the engine is to load its weights again.
        """
        if not entry.suspected_nan:
            return True
        entry.suspected_nan = await _computes(entry.client) is not True
        if entry.suspected_nan and self._weights is not None:
            with contextlib.suppress(EngineError):
                await entry.client.reset_version()
        return not entry.suspected_nan

    async def _bring_up_to_date(self, entry: _Entry) -> bool:
        """Have an engine load the newest weights, and say whether it runs them now."""
        if self._received is not None:
            # An engine that has lost weights that were sent once cannot get them again.
            return await _version(entry.client) == self._received
        weights = self._weights
        if weights is None:
            return True
        async with entry.updating:
            try:
                if self._awake_since > -inf:  # it may have missed the call that woke the others
                    await entry.client.wake_up()
                await self._reset_version(entry)
                await update_engine(
                    entry.client,
                    weights.path,
                    weights.version,
                    weights.checksum,
                    deadline=weights.deadline,
                    answer_patience_s=0.0,
                    verify=True,
                )
            except (EngineError, TimeoutError) as error:
                # Newer weights may have replaced the file: then those are next.
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


async def _gather(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run the calls together, and return their results.

    When one fails, the others are canceled, and have ended before its error is raised: each
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
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await engine.health()
    except TimeoutError:
        return False


async def _computes(engine: EngineClient) -> bool | None:
    """Say whether an engine's model computes numbers; None where it did not say in time."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await engine.computes_finite()
    except (EngineError, TimeoutError):
        return None
