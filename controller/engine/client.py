"""The engine as the controller sees it: turns over one HTTP session, administration over another, so that neither waits for the other.

Speaks vLLM's token-in, token-out interface (/inference/v1/generate): measured as fast as /v1/completions, and it returns which
weights produced which token. Imports neither vllm nor torch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from controller.engine.answers import Chunk, Generation, read_chunk, read_generation, version_number
from controller.engine.gate import bearer
from controller.engine.names import PACKED, PATTERN, RULE, TURN, UNKNOWN_VERSION, engine_request_id
from controller.rules.thinking import DelegatedRule
from protocol.messages import Transfer

KEEP_ALIVE = 3.0
"""Seconds an idle connection is kept: fewer than the 5 after which vLLM's server closes it, or a request may meet the closing."""


GENERATE = "/inference/v1/generate"


class EngineError(RuntimeError):
    """The engine refused, failed, or was not there; the message says what was asked and what came back."""


class EngineUnreachable(EngineError):
    """No answer arrived: the engine may or may not have done what was asked."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How a response is sampled. `cache_salt` keeps prefixes computed by other weights apart. `repeats` > 1: the turn ends, with finish
    reason "repetition", once it says the same so many times on end."""

    max_tokens: int
    cache_salt: str
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = []
    repeats: int = 0


class EngineClient:
    """One engine. Safe to use from any number of tasks of one event loop."""

    def __init__(self, url: str, key: str = "") -> None:
        """`key`: what the engine wants to be told, if anything."""
        self.url = url.rstrip("/")
        self._headers = {"Authorization": bearer(key)} if key else {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    # --- turns

    async def generate(
        self, turn_id: str, prompt: list[int], sampling: Sampling, *, watched: bool, rule: DelegatedRule | None = None
    ) -> Generation:
        """A response to `prompt` (token ids). `turn_id` is unique among the turns in flight; `watched` turns appear in signal
        frames under it; the engine carries out `rule` on them. Cancelling the call ends the turn in the engine. Raises EngineError.
        """
        body = _body(turn_id, prompt, sampling, top_k=0)  # of the sampled token alone
        if watched:
            body["sampling_params"]["extra_args"] = {TURN: turn_id} | ({} if rule is None else {RULE: msgspec.json.encode(rule).decode()})
        raw = await self._call("turns", "POST", GENERATE, body, tries=2)
        try:
            return read_generation(raw)
        except (msgspec.MsgspecError, ValueError) as error:
            raise EngineError(f"the engine's answer to turn {turn_id} cannot be read: {error}") from None

    async def stream(self, turn_id: str, prompt: list[int], sampling: Sampling, *, top_k: int) -> AsyncIterator[Chunk]:
        """A response as it is generated, each token with the log-probs of the `top_k` most likely ones (or of one fewer, where the
        sampled token is none of them); otherwise as `generate`. Needs no plugin in the engine. Raises EngineError, also when the
        stream ends without a last chunk.
        """
        body = _body(turn_id, prompt, sampling, top_k) | {"stream": True}
        what = f"POST {self.url}{GENERATE}"
        ended = False
        try:
            async with self._session("turns").post(self.url + GENERATE, json=body) as response:
                if response.status != 200:
                    raise EngineError(f"{what}: {response.status} {_reason(await response.read())}")
                async for line in response.content:
                    if line.startswith(b'data: {"error"'):
                        raise EngineError(f"{what}: {_reason(line[len(b'data: ') :])}")
                    if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                        chunk = read_chunk(line[len(b"data: ") :])
                        ended = ended or chunk.finish_reason is not None
                        yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnreachable(f"{what}: {error or type(error).__name__}") from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise EngineError(f"the engine's stream for turn {turn_id} cannot be read: {error}") from None
        if not ended:
            raise EngineUnreachable(f"the engine's stream for turn {turn_id} ended before the response did")

    async def abort(self, turn_id: str) -> None:
        """End the turn: its `generate` returns what there is, with finish reason "abort", and its `stream` ends. Nothing happens if
        it has finished."""
        await self._call("admin", "POST", "/abort_requests", {"request_ids": [engine_request_id(turn_id)]})

    # --- administration

    async def health(self) -> bool:
        """Whether the engine answers and says that it is well."""
        try:
            await self._call("admin", "GET", "/health")
        except EngineError:
            return False
        return True

    async def pause(self) -> None:
        """Freeze generation between two steps. Running turns keep their place and their KV cache."""
        await self._call("admin", "POST", "/pause?mode=keep&clear_cache=false")

    async def resume(self) -> None:
        """Let frozen turns go on. Nothing happens if the engine is not paused."""
        await self._call("admin", "POST", "/resume")

    async def is_paused(self) -> bool:
        return bool((await self._ask("/is_paused"))["is_paused"])

    async def weight_version(self) -> int | None:
        """The version of the last finished update; None before the first."""
        version = (await self._ask("/weight_info"))["weight_version"]
        number = version_number(version)
        return None if number == UNKNOWN_VERSION else number

    async def forget_version(self) -> None:
        """Whatever weights an earlier run has left, they are none of this one's versions."""
        await self._call("admin", "POST", "/update_weight_version", {"new_version": str(UNKNOWN_VERSION)})

    async def start_update(self) -> None:
        await self._call("admin", "POST", "/start_weight_update", {})

    async def update_weights(self, path: str, version: int, checksum: str, verify: bool = False) -> None:
        """Load the safetensors file at `path`, whose SHA-256 must be `checksum`; between `start_update` and `finish_update`.

        `verify` also compares the loaded weights with the file afterwards. Raises EngineError, with the old weights still in
        place, when file and checksum disagree.
        """
        info = {"path": path, "version": version, "checksum": checksum, "verify": verify}
        await self._call("admin", "POST", "/update_weights", {"update_info": info})

    async def workers(self) -> int:
        """Processes that hold the engine's model: as many ranks where weights are sent over NCCL."""
        return int((await self._ask("/get_world_size"))["world_size"])

    async def join(self, host: str, port: int, rank: int, size: int) -> None:
        """Have the engine's one worker meet the learner, which is rank 0, at `host`:`port`, as `rank` of `size`.

        Returns when all ranks are there. The engine lets go of what an earlier run has left: its group, and the version of its weights,
        or weights of the same version would be taken for received. Raises EngineError.
        """
        await self._call("admin", "POST", "/shutdown_weight_transfer_engine")
        await self.forget_version()
        info = {"master_address": host, "master_port": port, "rank_offset": rank, "world_size": size, **PACKED}
        await self._call("admin", "POST", "/init_weight_transfer_engine", {"init_info": info})

    async def receive_weights(self, transfer: Transfer) -> None:
        """Load what the learner sends meanwhile; between `start_update` and `finish_update`, after `join`. Returns when it has arrived.

        Raises EngineError, and what weights the engine then has is not known.
        """
        info = {"names": transfer.names, "dtype_names": transfer.dtypes, "shapes": transfer.shapes}
        await self._call("admin", "POST", "/update_weights", {"update_info": info})

    async def finish_update(self, version: int) -> None:
        """Put the loaded weights to use, as `version`."""
        await self._call("admin", "POST", "/finish_weight_update", {"weight_version": str(version)})

    async def checksums(self) -> dict[str, str]:
        """SHA-256 of each weight as the engine's workers hold it. On a CPU, those of linear layers are of empty tensors: vLLM
        keeps packed copies only.
        """
        return msgspec.json.decode(await self._call("admin", "POST", "/weight_checker", {"action": "checksum"}))["checksums"]

    # --- HTTP

    async def _ask(self, path: str) -> dict:
        return msgspec.json.decode(await self._call("admin", "GET", path))

    def _session(self, name: str) -> aiohttp.ClientSession:
        """Administration opens a connection for each call: after an error of its own, vLLM closes the one that it came through, and
        whoever uses that again loses a call of which nobody knows whether it was carried out.
        """
        if name not in self._sessions:
            kept = {"force_close": True} if name == "admin" else {"keepalive_timeout": KEEP_ALIVE}
            connector = aiohttp.TCPConnector(limit=0, **kept)
            # No total timeout: a turn may take minutes, and whoever waits for an update has a deadline of his own.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
            self._sessions[name] = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self._sessions[name]

    async def _call(self, session: str, method: str, path: str, body: dict | None = None, tries: int = 1) -> bytes:
        """The body of the answer. With `tries` above 1, for what may be done twice, a lost connection is tried again."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        for left in reversed(range(tries)):
            try:
                async with self._session(session).request(method, self.url + path, data=data, headers=headers) as response:
                    raw = await response.read()
                break
            except (aiohttp.ClientError, TimeoutError) as error:
                if left and isinstance(error, aiohttp.ClientConnectionError):
                    continue
                raise EngineUnreachable(f"{method} {self.url}{path}: {error or type(error).__name__}") from None
        if response.status != 200:
            raise EngineError(f"{method} {self.url}{path}: {response.status} {_reason(raw)}")
        return raw


def _body(turn_id: str, prompt: list[int], sampling: Sampling, top_k: int) -> dict[str, Any]:
    """The request, as vLLM's /inference/v1/generate takes it."""
    params: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stop_token_ids": sampling.stop_token_ids,
        "logprobs": top_k,
        "detokenize": False,
    }
    if sampling.seed is not None:
        params["seed"] = sampling.seed
    if sampling.repeats > 1:
        params["repetition_detection"] = {"max_pattern_size": PATTERN, "min_count": sampling.repeats}
    return {"request_id": turn_id, "token_ids": prompt, "sampling_params": params, "cache_salt": sampling.cache_salt}


def _reason(raw: bytes) -> str:
    """The message in an error answer: vLLM's JSON, or the text as it is."""
    try:
        answer = msgspec.json.decode(raw)
        error = answer.get("error", answer)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (msgspec.DecodeError, AttributeError):
        return raw.decode(errors="replace")[:500]
