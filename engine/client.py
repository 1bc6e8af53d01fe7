"""Client of an engine, for turns and for administration.

Each has an HTTP session of its own, so that neither waits for the other.

Speaks vLLM's token-in, token-out interface (/inference/v1/generate): measured as fast as
/v1/completions, and it returns which weights produced which token. Imports neither vllm nor torch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from math import isfinite
from secrets import token_hex
from typing import Any

import aiohttp
import msgspec

from controller.rules.thinking import RuleSpec
from engine.connection import (
    MAX_ANSWER_BYTES,
    EngineError,
    EngineTaken,
    EngineUnreachable,
    check_status,
    identity_headers,
    new_session,
    read_at_most,
    read_events,
    read_reason,
)
from engine.constants import (
    CHECK_ROUTE,
    CLAIM_ROUTE,
    MAX_PATTERN_TOKENS,
    NCCL_PACKING,
    RULE_KEY,
    RUN_HEADER,
    TURN_ID_KEY,
    UNKNOWN_VERSION,
    engine_request_id,
)
from engine.plugin.file_check import FileIdentity
from engine.responses import Chunk, Generation, parse_version, read_chunk, read_generation
from protocol.messages import Transfer

GENERATE = "/inference/v1/generate"

ABORT_SECONDS = 5.0
"""Time for one try to tell the engine of turns that were abandoned."""
ABORT_EVERY = 1.0
ABORT_TRIES = 10
RELEASE_SECONDS = 1.0
"""Time for telling an engine that the run is over; its claim lapses anyway."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters by which a response is sampled.

    `temperature` 0 takes the likeliest token. `top_k` tokens, and of these as many as have the
    probability `top_p`, are left to choose from (0 and 1: all). `cache_salt` keeps prefixes
    computed by other weights apart. `repeats` > 1: the turn ends, with finish reason "repetition",
    once it says the same so many times on end. `ignore_eos`: the model's own end token ends
    nothing.
    """

    max_tokens: int
    cache_salt: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = []
    repeats: int = 0
    ignore_eos: bool = False


class EngineClient:
    """Client of one engine, safe to use from any number of tasks of one event loop."""

    def __init__(self, url: str, key: str = "", run: str = "") -> None:
        """`key` is what the engine wants to be told, if anything; `run` claims the engine."""
        self.url = url.rstrip("/")
        self._headers = identity_headers(key, run)
        self.taken: EngineTaken | None = None
        """The engine's refusal when it was another run's."""
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        # Turns whose answer nobody waits for, which the engine may not know.
        self._abandoned: set[str] = set()
        self._aborting: asyncio.Task[None] | None = None
        self._closing = False

    async def close(self) -> None:
        """Abort the turns that were abandoned, once more, and end the run's claim."""
        if self._closing:
            return
        self._closing = True
        if self._aborting is not None:
            await asyncio.wait({self._aborting}, timeout=1.0)
            self._aborting.cancel()
            await asyncio.wait({self._aborting})
        if RUN_HEADER in self._headers:
            with contextlib.suppress(EngineError, TimeoutError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._call("admin", "DELETE", CLAIM_ROUTE)
        for session in self._sessions.values():
            await session.close()

    # --- turns

    async def generate(
        self,
        turn_id: str,
        prompt: list[int],
        sampling: Sampling,
        *,
        watched: bool,
        rule: RuleSpec | None = None,
    ) -> Generation:
        """Generate a response to `prompt` (token ids).

        `turn_id` is of this call alone, since one that is lost may go on in the engine; `watched`
        turns appear in signal frames under it; the engine carries out `rule` on them. However the
        call ends, the turn ends in the engine. Raises EngineError.
        """
        body = build_body(turn_id, prompt, sampling, log_probs=0)
        if watched:
            extra_args = {TURN_ID_KEY: turn_id}
            if rule is not None:
                extra_args[RULE_KEY] = msgspec.json.encode(rule).decode()
            body["sampling_params"]["extra_args"] = extra_args
        with self._abort_if_abandoned(turn_id):
            raw = await self._call("turns", "POST", GENERATE, body)
        try:
            return read_generation(raw)
        except (msgspec.MsgspecError, ValueError) as error:
            raise EngineError(
                f"the engine's answer to turn {turn_id} cannot be read: {error}"
            ) from None

    async def stream(
        self, turn_id: str, prompt: list[int], sampling: Sampling, *, log_probs: int
    ) -> AsyncGenerator[Chunk, None]:
        """Generate a response as `generate` does, and yield it as it comes.

        Each token has the log-probs of so many of the most likely ones, or of one fewer, where the
        sampled token is none of them. This needs no plugin in the engine. Raises EngineError, also
        when the stream ends without a last chunk.
        """
        body = build_body(turn_id, prompt, sampling, log_probs) | {"stream": True}
        try:
            with self._abort_if_abandoned(turn_id):
                async with self._open("turns", "POST", GENERATE, body) as response:
                    async for data in read_events(response):
                        if data.startswith(b'{"error"'):
                            raise EngineError(f"POST {self.url}{GENERATE}: {read_reason(data)}")
                        chunk = read_chunk(data)
                        yield chunk
                        if chunk.finish_reason is not None:
                            return  # what follows says nothing ("[DONE]"), and may never come
                raise EngineUnreachable(
                    f"the engine's stream for turn {turn_id} ended before the response did"
                )
        except (msgspec.MsgspecError, ValueError) as error:
            raise EngineError(
                f"the engine's stream for turn {turn_id} cannot be read: {error}"
            ) from None

    async def abort(self, turn_id: str) -> None:
        """End a turn; nothing happens if it has finished.

        Its `generate` returns what there is, with finish reason "abort", and its `stream` ends.
        """
        await self._abort([turn_id])

    async def _abort(self, turn_ids: list[str]) -> None:
        await self._call(
            "admin",
            "POST",
            "/abort_requests",
            {"request_ids": [engine_request_id(turn_id) for turn_id in turn_ids]},
        )

    # --- administration

    async def health(self) -> bool:
        """Say whether the engine answers and says that it is well."""
        try:
            await self._call("admin", "GET", "/health")
        except EngineError:
            return False
        return True

    async def pause(self) -> None:
        """Freeze generation between two steps.

        Running turns keep their place and their KV cache.
        """
        await self._call("admin", "POST", "/pause?mode=keep&clear_cache=false")

    async def resume(self) -> None:
        """Let frozen turns go on; nothing happens if the engine is not paused."""
        await self._call("admin", "POST", "/resume")

    async def is_paused(self) -> bool:
        """Say whether generation is frozen."""
        return bool((await self._ask("/is_paused"))["is_paused"])

    async def sleep(self) -> None:
        """Give up the memory of weights and KV cache; nothing happens if that is done.

        Generation is frozen. Running turns keep their place, and what they have of the KV cache is
        computed again after `wake_up`.
        """
        await self._call("admin", "POST", "/sleep?level=1&mode=keep")

    async def wake_up(self) -> None:
        """Take the memory back, and let turns go on; nothing happens if the engine is awake."""
        await self._call("admin", "POST", "/wake_up")

    async def weight_version(self) -> int | None:
        """Ask for the version of the last finished update; None before the first."""
        number = parse_version((await self._ask("/weight_info"))["weight_version"])
        if number == UNKNOWN_VERSION:
            return None
        return number

    async def computes_finite(self) -> bool:
        """Say whether the model computes numbers, and neither NaN nor infinity.

        The log-prob of one token tells. Raises EngineError.
        """
        name = f"probe-{token_hex(8)}"
        generation = await self.generate(
            name, [0], Sampling(max_tokens=1, cache_salt=name), watched=False
        )
        return all(map(isfinite, generation.log_probs))

    async def reset_version(self) -> None:
        """Have the engine forget the version of weights that an earlier run has left."""
        await self._call(
            "admin", "POST", "/update_weight_version", {"new_version": str(UNKNOWN_VERSION)}
        )

    async def start_update(self) -> None:
        """Begin an update of the weights."""
        await self._call("admin", "POST", "/start_weight_update", {})

    async def check_weights(self, path: str, checksum: str) -> FileIdentity:
        """Hash the file at `path` on the engine's machine, while it generates.

        Returns what `update_weights` knows the file by. Raises EngineError when its SHA-256 is not
        `checksum`.
        """
        body = {"path": path, "checksum": checksum}
        raw = await self._call("admin", "POST", CHECK_ROUTE, body)
        return msgspec.json.decode(raw)["identity"]

    async def update_weights(
        self, path: str, version: int, identity: FileIdentity, verify: bool = False
    ) -> None:
        """Load the safetensors file at `path`, which `check_weights` has found to be of `identity`.

        It is called between `start_update` and `finish_update`. `verify` also compares the loaded
        weights with the file afterwards. Raises EngineError, with the old weights still in place,
        when the file is another one.
        """
        info = {"path": path, "version": version, "identity": identity, "verify": verify}
        await self._call("admin", "POST", "/update_weights", {"update_info": info})

    async def count_workers(self) -> int:
        """Count the processes that hold the engine's model, each a rank in NCCL's group."""
        return int((await self._ask("/get_world_size"))["world_size"])

    async def init_nccl_group(self, host: str, port: int, rank: int, size: int) -> None:
        """Have the engine's one worker join the learner's group, as `rank` of `size`.

        The learner is rank 0, at `host`:`port`. Returns when all ranks are there. The engine lets
        go of the group that an earlier run has left. It also forgets the version of its weights,
        or weights of the same version would be taken for received. Raises EngineError.
        """
        await self._call("admin", "POST", "/shutdown_weight_transfer_engine")
        await self.reset_version()
        info = {
            "master_address": host,
            "master_port": port,
            "rank_offset": rank,
            "world_size": size,
            **NCCL_PACKING,
        }
        await self._call("admin", "POST", "/init_weight_transfer_engine", {"init_info": info})

    async def receive_weights(self, transfer: Transfer) -> None:
        """Load the weights that the learner sends meanwhile, and return when they have arrived.

        It is called between `start_update` and `finish_update`, after `init_nccl_group`. Raises
        EngineError, and which weights the engine then has is not known.
        """
        info = {"names": transfer.names, "dtype_names": transfer.dtypes, "shapes": transfer.shapes}
        await self._call("admin", "POST", "/update_weights", {"update_info": info})

    async def finish_update(self, version: int) -> None:
        """Put the loaded weights to use, as `version`."""
        await self._call("admin", "POST", "/finish_weight_update", {"weight_version": str(version)})

    async def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of each weight as the engine's workers hold it.

        On a CPU, those of linear layers are of empty tensors: vLLM keeps packed copies only.
        """
        raw = await self._call("admin", "POST", "/weight_checker", {"action": "checksum"})
        return msgspec.json.decode(raw)["checksums"]

    # --- HTTP

    async def _ask(self, path: str) -> dict:
        return msgspec.json.decode(await self._call("admin", "GET", path))

    def _session(self, name: str) -> aiohttp.ClientSession:
        """Return the session of this name; administration's opens a connection for each call.

        After an error of its own, vLLM closes the connection that the call came through. Whoever
        uses that again loses a call of which nobody knows whether it was carried out.
        """
        if name not in self._sessions:
            self._sessions[name] = new_session(self._headers, reuses=name != "admin")
        return self._sessions[name]

    @contextlib.asynccontextmanager
    async def _open(
        self, session: str, method: str, path: str, body: dict | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an answer, whose body has not been read.

        Raises EngineError, for what goes wrong inside, too.
        """
        what = f"{method} {self.url}{path}"
        data = None
        headers = {}
        if body is not None:
            data = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        opened = self._session(session).request(
            method, self.url + path, data=data, headers=headers, allow_redirects=False
        )
        try:
            async with opened as response:
                await check_status(what, response)
                yield response
        except EngineTaken as error:
            self.taken = error
            raise
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(f"{what}: {error or type(error).__name__}") from None

    async def _call(self, session: str, method: str, path: str, body: dict | None = None) -> bytes:
        """Ask once, and return the body of the answer.

        Whoever asks again knows whether that may be done twice.
        """
        async with self._open(session, method, path, body) as response:
            raw = await read_at_most(response, MAX_ANSWER_BYTES + 1)
        if len(raw) > MAX_ANSWER_BYTES:
            raise EngineError(
                f"{method} {self.url}{path}: an answer of more than {MAX_ANSWER_BYTES} bytes"
            )
        return raw

    # --- turns that were abandoned

    @contextlib.contextmanager
    def _abort_if_abandoned(self, turn_id: str) -> Iterator[None]:
        """Abort a turn soon that ends inside without its answer.

        The connection was lost, or nobody waits any more. Its connection's end may not reach the
        engine, nor be noticed there.
        """
        answered = False
        try:
            yield
            answered = True
        finally:
            if not answered and not self._closing:
                self._abandoned.add(turn_id)
                if self._aborting is None or self._aborting.done():
                    self._aborting = asyncio.create_task(self._abort_abandoned())

    async def _abort_abandoned(self) -> None:
        """Abort all turns that were abandoned, together.

        An engine that cannot be told for a minute has ended them, or will.
        """
        tries = 0
        while self._abandoned and tries < ABORT_TRIES:
            names = sorted(self._abandoned)
            try:
                async with asyncio.timeout(ABORT_SECONDS):
                    await self._abort(names)
                self._abandoned.difference_update(names)
                tries = 0
            except (EngineError, TimeoutError):
                tries += 1
                if self._closing:
                    return
                await asyncio.sleep(ABORT_EVERY)
        self._abandoned.clear()


def build_body(
    turn_id: str, prompt: list[int], sampling: Sampling, log_probs: int
) -> dict[str, Any]:
    """Build the request, as vLLM's /inference/v1/generate takes it.

    `log_probs`: of how many of the likeliest tokens; 0: of the sampled token alone.
    """
    params: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        # said in any case: an engine of one's own may have other defaults, of the model's
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "stop_token_ids": sampling.stop_token_ids,
        "logprobs": log_probs,
        "detokenize": False,
        "ignore_eos": sampling.ignore_eos,
    }
    if sampling.seed is not None:
        params["seed"] = sampling.seed
    if sampling.repeats > 1:
        params["repetition_detection"] = {
            "max_pattern_size": MAX_PATTERN_TOKENS,
            "min_count": sampling.repeats,
        }
    return {
        "request_id": turn_id,
        "token_ids": prompt,
        "sampling_params": params,
        "cache_salt": sampling.cache_salt,
    }
