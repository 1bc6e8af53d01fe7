"""New weights into a running engine: pause, start, update, finish, resume."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from math import inf

from engine.client import EngineClient
from engine.connection import EngineError, EngineUnreachable
from protocol.messages import Transfer

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.2
"""Wait between two tries when the engine does not answer."""

RESUME_SECONDS = 10.0
"""Time for the resume that must follow whatever happened, beyond the deadline."""


async def update_engine(
    engine: EngineClient,
    path: str,
    version: int,
    checksum: str,
    *,
    deadline: float,
    answer_patience_s: float = inf,
    verify: bool = False,
) -> float:
    """Make the engine run the weights of the safetensors file `path` as `version`.

    Turns in flight freeze, and go on with them.

    Returns the seconds for which generation stood still: 0 when the engine runs `version` already.
    A try that got no answer may have succeeded, so each asks for the version first. `deadline`:
    seconds for all tries. `verify`: also compare what the engine has loaded with the file. The
    engine is resumed in any case. Raises EngineError when it refuses, and EngineUnreachable when
    the deadline passes, or it has given no answer for `answer_patience_s`.
    """
    load = functools.partial(engine.update_weights, path, version, checksum, verify)
    return await _apply(engine, version, load, deadline, answer_patience_s, keeps_old=True)


async def update_engine_nccl(
    engine: EngineClient, transfer: Transfer, version: int, *, deadline: float
) -> float:
    """Make the engine run the weights that the learner sends over NCCL.

    It does as `update_engine`. But weights are sent once, so that a try whose loading got no
    answer is the last one. After a failed loading the engine stays paused, for half of its weights
    may be new.
    """
    received = False

    async def load() -> None:
        nonlocal received
        if not received:
            try:
                await engine.receive_weights(transfer)
            except EngineUnreachable as error:
                raise EngineError(
                    f"weights are sent once, and whether they arrived is not known: {error}"
                ) from None
            received = True

    return await _apply(engine, version, load, deadline, inf, keeps_old=False)


async def _apply(
    engine: EngineClient,
    version: int,
    load: Callable[[], Awaitable[None]],
    deadline: float,
    answer_patience_s: float,
    *,
    keeps_old: bool,
) -> float:
    """Update the weights by `load`, in as many tries as it takes.

    `keeps_old`: the engine may go on with its old weights when `load` has failed.
    """
    start = time.monotonic()
    try:
        async with asyncio.timeout(deadline):
            while True:
                try:
                    return await _try(engine, version, load, keeps_old)
                except EngineUnreachable as error:
                    if time.monotonic() - start > answer_patience_s:
                        raise
                    log.warning(
                        "update to version %d: no answer, trying again (%s)", version, error
                    )
                    await asyncio.sleep(RETRY_SECONDS)
    except TimeoutError:
        seconds = time.monotonic() - start
        raise EngineUnreachable(
            f"the engine does not run version {version} after {seconds:.0f} s "
            "(engine.update_seconds)"
        ) from None


async def _try(
    engine: EngineClient, version: int, load: Callable[[], Awaitable[None]], keeps_old: bool
) -> float:
    if await engine.weight_version() == version:
        if await engine.is_paused():
            await engine.resume()
        return 0.0
    start = time.monotonic()
    may_resume = True
    try:
        await engine.pause()
        await _start(engine)
        may_resume = keeps_old
        await load()
        await engine.finish_update(version)
        may_resume = True
    finally:
        if may_resume:
            await _resume(engine)
    seconds = time.monotonic() - start
    reported = await engine.weight_version()
    if reported != version:
        raise EngineError(
            f"after the update to version {version}, the engine reports version {reported}"
        )
    return seconds


async def _start(engine: EngineClient) -> None:
    try:
        await engine.start_update()
    except EngineUnreachable:
        raise
    except EngineError as error:
        # One that is left open by a try that got no answer: its file is loaded again.
        if "already active" not in str(error):
            raise


async def _resume(engine: EngineClient) -> None:
    """Resume the engine, even when the update was canceled half-way.

    An error before is more interesting than a resume that fails, too.
    """
    try:
        await asyncio.shield(asyncio.ensure_future(_resume_patiently(engine)))
    except (EngineError, TimeoutError) as error:
        log.warning(
            "the engine could not be resumed: %s", error or f"no answer for {RESUME_SECONDS:g} s"
        )


async def _resume_patiently(engine: EngineClient) -> None:
    async with asyncio.timeout(RESUME_SECONDS):
        while True:
            try:
                return await engine.resume()
            except EngineUnreachable:
                await asyncio.sleep(RETRY_SECONDS)
