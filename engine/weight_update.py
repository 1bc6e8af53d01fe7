"""New weights into a running engine: check the file, pause, start, update, finish, resume."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from math import inf, prod
from typing import Protocol

from engine.client import EngineClient
from engine.connection import EngineError, EngineUnreachable
from engine.plugin.file_check import FileIdentity
from protocol.messages import Transfer

log = logging.getLogger(__name__)

SLOWEST_BYTES_PER_S = 200e6
"""Bytes a second at which weights are read at least, twice, before an update is given up.

A disk on the network gives as much; memory gives a hundred times that.
"""

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

RETRY_SECONDS = 0.2
"""Wait between two tries when the engine does not answer."""

RESUME_SECONDS = 10.0
"""Time for the resume that must follow whatever happened, beyond the deadline."""


CheckFile = Callable[[], Awaitable[FileIdentity]]
"""Hashes a file of weights on an engine's machine, and returns what the engine knows it by."""


def scale_deadline(base_s: float, size_bytes: int) -> float:
    """Return the deadline of an update in seconds: `base_s`, and the time to read so many bytes."""
    return base_s + size_bytes / SLOWEST_BYTES_PER_S


def transfer_bytes(transfer: Transfer) -> int:
    """Count the bytes of the tensors that the learner sends over NCCL."""
    return sum(
        prod(shape) * DTYPE_BYTES[dtype]
        for shape, dtype in zip(transfer.shapes, transfer.dtypes, strict=True)
    )


async def update_engine(
    engine: EngineClient,
    path: str,
    version: int,
    checksum: str,
    *,
    deadline: float,
    answer_patience_s: float = inf,
    verify: bool = False,
    check: CheckFile | None = None,
) -> float:
    """Make the engine run the weights of the safetensors file `path` as `version`.

    The file is hashed first, by the engine or by `check`. Then turns in flight freeze, and go on
    with the new weights.

    Returns the seconds for which generation stood still: 0 when the engine runs `version` already.
    A try that got no answer may have succeeded, so each asks for the version first. `deadline`:
    seconds for all tries. `verify`: also compare what the engine has loaded with the file. The
    engine is resumed in any case. Raises EngineError when it refuses, and EngineUnreachable when
    the deadline passes, or it has given no answer for `answer_patience_s`.
    """
    if check is None:
        check = functools.partial(engine.check_weights, path, checksum)
    load = _FileLoad(engine, path, version, verify, check)
    return await _apply(engine, version, load, deadline, answer_patience_s)


async def update_engine_nccl(
    engine: EngineClient, transfer: Transfer, version: int, *, deadline: float
) -> float:
    """Make the engine run the weights that the learner sends over NCCL.

    It does as `update_engine`. But weights are sent once, so that a try whose loading got no
    answer is the last one. After a failed loading the engine stays paused, for half of its weights
    may be new.
    """
    return await _apply(engine, version, _SentLoad(engine, transfer), deadline, inf)


class _Load(Protocol):
    """A way of weights into an engine."""

    keeps_old: bool
    """True if the engine may go on with its old weights when `load` has failed."""

    async def prepare(self) -> None:
        """Do what can be done while the engine generates."""

    async def load(self) -> None:
        """Load the weights into the engine, which is paused."""


class _FileLoad:
    """Weights from a file."""

    keeps_old = True

    def __init__(
        self, engine: EngineClient, path: str, version: int, verify: bool, check: CheckFile
    ) -> None:
        self._engine = engine
        self._path = path
        self._version = version
        self._verify = verify
        self._check = check
        self._identity: FileIdentity = []

    async def prepare(self) -> None:
        self._identity = await self._check()

    async def load(self) -> None:
        await self._engine.update_weights(self._path, self._version, self._identity, self._verify)


class _SentLoad:
    """Weights that the learner sends once."""

    keeps_old = False

    def __init__(self, engine: EngineClient, transfer: Transfer) -> None:
        self._engine = engine
        self._transfer = transfer
        self._received = False

    async def prepare(self) -> None:
        pass

    async def load(self) -> None:
        if self._received:
            return
        try:
            await self._engine.receive_weights(self._transfer)
        except EngineUnreachable as error:
            raise EngineError(
                f"weights are sent once, and whether they arrived is not known: {error}"
            ) from None
        self._received = True


async def _apply(
    engine: EngineClient,
    version: int,
    load: _Load,
    deadline: float,
    answer_patience_s: float,
) -> float:
    """Update the weights by `load`, in as many tries as it takes."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(deadline):
            while True:
                try:
                    return await _try(engine, version, load)
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


async def _try(engine: EngineClient, version: int, load: _Load) -> float:
    if await engine.weight_version() == version:
        if await engine.is_paused():
            await engine.resume()
        return 0.0
    await load.prepare()
    start = time.monotonic()
    may_resume = True
    try:
        await engine.pause()
        await _start(engine)
        may_resume = load.keeps_old
        await load.load()
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
