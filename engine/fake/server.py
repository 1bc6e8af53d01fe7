"""A small engine for tests and for `--serial`.

It has vLLM's HTTP, abort and weight protocols as far as we use them, and our own signals.

It runs inside an event loop that is already running, beside everything else of a run. What it
generates comes from `generation.py`; the same protocol tests run against it and against vLLM.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from controller.rules.thinking import RuleSpec
from engine.constants import (
    CHECK_ROUTE,
    CLAIM_ROUTE,
    GATED_HEADER,
    RULE_KEY,
    RUN_HEADER,
    TURN_ID_KEY,
    engine_request_id,
)
from engine.fake.generation import Generator, Request
from engine.plugin.auth import (
    EVENTS,
    LAPSES_SECONDS,
    OPEN,
    TAKEN,
    TAKEN_STATUS,
    Claim,
    LivelyStream,
    answer_file_check,
    knows_key,
    lively_headers,
)
from protocol.security import HEARTBEAT_SECONDS

MAX_BODY = 16 << 20
"""Bytes. A prompt of a million tokens."""


class FakeEngine:
    """`url = await engine.start()`, and `await engine.stop()` when done.

    From `start` on, `generator` has the model and the requests.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        port: int = 0,
        signals: str | None = None,
        top_j: int = 20,
        key: str = "",
        keys: str = "",
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        """Serve the Hugging Face model in `model_dir` at 127.0.0.1:`port` (0: any free one).

        `signals`: ZeroMQ address at which the controller's ROUTER is bound, for whom `keys` is a
        directory of (protocol/security.py); None: no signals and no commands. `top_j`: see
        uncertainty.py. `key`: what whoever asks must know. `heartbeat_seconds`: of the connection
        for signals.
        """
        self._port = port
        self._key = key
        self._claim = Claim()
        self._settings = (Path(model_dir), signals, top_j, keys, heartbeat_seconds)
        self._runner: web.AppRunner | None = None
        self._updating = False
        self._loaded = False
        self.asleep = False
        """True while it has given up its memory."""

    async def start(self) -> str:
        """Start to answer, and return the URL at which the engine does."""
        self.generator = Generator(*self._settings)
        self._loop = asyncio.create_task(self.generator.run())
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors_as_vllm, self._gate])
        app.on_response_prepare.append(_mark)
        app.router.add_routes(self.routes())
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    def routes(self) -> list[web.RouteDef]:
        """List what is answered, and by which method; a subclass may answer more, or otherwise."""
        return [
            web.get("/health", self._health),
            web.delete(CLAIM_ROUTE, self._release),
            web.post(CHECK_ROUTE, self._check_file),
            web.post("/inference/v1/generate", self._generate),
            web.post("/abort_requests", self._abort),
            web.post("/pause", self._pause),
            web.post("/resume", self._resume),
            web.get("/is_paused", self._is_paused),
            web.post("/sleep", self._sleep),
            web.post("/wake_up", self._wake_up),
            web.get("/weight_info", self._weight_info),
            web.post("/update_weight_version", self._relabel),
            web.post("/start_weight_update", self._start_update),
            web.post("/update_weights", self._update),
            web.post("/finish_weight_update", self._finish_update),
            web.post("/weight_checker", self._checksums),
        ]

    async def stop(self) -> None:
        for request in self.generator.requests:
            request.finish("abort")
        self._loop.cancel()
        await asyncio.wait([self._loop])
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        known = knows_key(request.headers.get("Authorization", ""), self._key)
        refused = known and self._claim.is_refused(request.headers.get(RUN_HEADER, ""))
        if request.path not in OPEN and not known:
            raise web.HTTPUnauthorized(text="the key of this engine is needed")
        if request.path not in OPEN and refused:
            return _json(
                {"error": {"message": TAKEN.format(LAPSES_SECONDS), "code": TAKEN_STATUS}},
                TAKEN_STATUS,
            )
        return await handler(request)

    async def _release(self, raw: web.Request) -> web.Response:
        self._claim.release(raw.headers.get(RUN_HEADER, ""))
        return _json({})

    async def _check_file(self, raw: web.Request) -> web.Response:
        status, body = await answer_file_check(await raw.read())
        return web.Response(status=status, body=body, content_type="application/json")

    # --- turns

    async def _generate(self, raw: web.Request) -> web.StreamResponse:
        body = await raw.json()
        sampling = body["sampling_params"]
        prompt = body["token_ids"]
        if not prompt or not all(0 <= token < self.generator.vocabulary for token in prompt):
            raise web.HTTPBadRequest(
                text="the prompt is empty, or holds tokens outside the vocabulary"
            )
        stop = frozenset(sampling.get("stop_token_ids") or ())
        extra = sampling.get("extra_args") or {}
        delegated = (
            msgspec.json.decode(extra[RULE_KEY], type=RuleSpec) if RULE_KEY in extra else None
        )
        repetition = sampling.get("repetition_detection") or {}
        request = Request(
            id=engine_request_id(body.get("request_id", "")),
            prompt=prompt,
            max_tokens=sampling.get("max_tokens", 16),
            temperature=sampling.get("temperature", 1.0),
            top_k=sampling.get("top_k", 0),
            top_p=sampling.get("top_p", 1.0),
            stop=stop if sampling.get("ignore_eos") else stop | self.generator.end_tokens,
            turn_id=extra.get(TURN_ID_KEY),
            seed=sampling.get("seed"),
            rule=delegated and delegated.build(),
            queue=delegated.closing_tokens if delegated else [],
            pattern=repetition.get("max_pattern_size", 0),
            min_count=repetition.get("min_count", 0),
        )
        self._check_alive()
        request.listed = sampling.get("logprobs") or 0
        self.generator.add(request)
        if body.get("stream"):
            return await self._stream(raw, request)
        try:
            await request.finished.wait()
        finally:
            request.finish("abort")  # the client has gone
        self._check_alive()
        return _json(_answer(request))

    async def _stream(self, raw: web.Request, request: Request) -> web.StreamResponse:
        """Send an event a token; the last one has none of its own if the request was aborted."""
        response = web.StreamResponse(headers={"Content-Type": EVENTS, **lively_headers()})
        await response.prepare(raw)
        stream = LivelyStream(lambda piece, more: response.write(piece))
        sent = 0
        try:
            while True:
                await request.grown.wait()
                request.grown.clear()
                ended = request.finish_reason is not None
                while sent < len(request.tokens) or ended:
                    last = ended and sent >= len(request.tokens) - 1
                    event = _event(request, slice(sent, sent + 1), last)
                    await stream.send(b"data: " + msgspec.json.encode(event) + b"\n\n")
                    sent += 1
                    if last:
                        await stream.send(b"data: [DONE]\n\n", more=False)
                        return response
        finally:
            request.finish("abort")  # the client has gone
            await stream.close()

    async def _abort(self, raw: web.Request) -> web.Response:
        ids = set((await raw.json())["request_ids"])
        for request in self.generator.requests:
            if request.id in ids:
                request.finish("abort")
        return _json({"status": "aborted", "aborted": len(ids)})

    # --- administration

    async def _health(self, raw: web.Request) -> web.Response:
        self._check_alive()
        return web.Response()

    def _check_alive(self) -> None:
        """Raise what ended the generation."""
        if self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    async def _pause(self, raw: web.Request) -> web.Response:
        if raw.query.get("mode") != "keep":
            raise web.HTTPBadRequest(text="the fake engine only pauses with mode=keep")
        await self.generator.pause()
        return _json({"status": "paused"})

    async def _resume(self, raw: web.Request) -> web.Response:
        if self.asleep:
            raise ValueError("an engine that sleeps has no memory to go on with: wake it up")
        self.generator.resume()
        return _json({"status": "resumed"})

    async def _is_paused(self, raw: web.Request) -> web.Response:
        return _json({"is_paused": self.generator.paused})

    async def _sleep(self, raw: web.Request) -> web.Response:
        if raw.query.get("mode") != "keep" or raw.query.get("level") != "1":
            raise web.HTTPBadRequest(text="the fake engine only sleeps with level=1, mode=keep")
        await self.generator.sleep()
        self.asleep = True
        return _json({"status": "sleeping"})

    async def _wake_up(self, raw: web.Request) -> web.Response:
        self.asleep = False
        self.generator.resume()
        return _json({"status": "awake"})

    async def _weight_info(self, raw: web.Request) -> web.Response:
        return _json({"weight_version": self.generator.version})

    async def _relabel(self, raw: web.Request) -> web.Response:
        self.generator.version = (await raw.json())["new_version"]
        return _json({})

    async def _start_update(self, raw: web.Request) -> web.Response:
        if self._updating:
            raise ValueError("start_weight_update called while a weight update is already active")
        self._updating = True
        self._loaded = False
        return _json({})

    async def _update(self, raw: web.Request) -> web.Response:
        info = (await raw.json())["update_info"]
        if not self._updating:
            raise ValueError("start_weight_update must be called before update_weights")
        if not self.generator.paused:
            raise ValueError("weights change only while generation is paused")
        if self.asleep:
            raise ValueError("an engine that sleeps has no memory for weights")
        try:
            self.generator.load(Path(info["path"]), info["identity"])
        except ValueError:
            self._updating = False
            raise
        self._loaded = True
        return _json({})

    async def _finish_update(self, raw: web.Request) -> web.Response:
        version = (await raw.json()).get("weight_version")
        if not self._updating:
            raise ValueError("finish_weight_update called without a matching start_weight_update")
        self._updating = False
        if self._loaded:
            self.generator.version = version
        return _json({})

    async def _checksums(self, raw: web.Request) -> web.Response:
        weights = self.generator.weights()
        return _json(
            {
                "checksums": {
                    name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
                    for name, tensor in weights.items()
                }
            }
        )


async def _mark(raw: web.Request, response: web.StreamResponse) -> None:
    response.headers[GATED_HEADER] = "1"


def _answer(request: Request) -> dict:
    """Build the answer of /inference/v1/generate to a finished request."""
    return _event(request, slice(None), last=True)


def _event(request: Request, part: slice, last: bool) -> dict:
    """Build the event of a part of a request's tokens.

    The `last` one says how it ended, and which weights produced all of them.
    """
    entries = [
        {"token_id": token, "logprob": log_prob, "top_logprobs": top}
        for token, log_prob, top in zip(
            request.tokens[part], request.log_probs[part], request.top[part], strict=True
        )
    ]
    starts = [
        i
        for i, version in enumerate(request.versions)
        if i == 0 or request.versions[i - 1] != version
    ]
    ends = [*starts[1:], len(request.tokens)]
    spans = [
        {"version": request.versions[start], "start": start, "end": end}
        for start, end in zip(starts, ends, strict=False)
    ]
    choice = {
        "index": 0,
        "token_ids": request.tokens[part],
        "logprobs": {"content": entries},
        "finish_reason": request.finish_reason if last else None,
        "weight_versions": spans if last else None,
    }
    return {"request_id": request.id, "choices": [choice]}


@web.middleware
async def _errors_as_vllm(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _json({"error": {"message": error.text, "code": error.status}}, error.status)
    except (ValueError, KeyError) as error:
        return _json({"error": {"message": str(error), "code": 500}}, 500)


def _json(body: dict, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )
