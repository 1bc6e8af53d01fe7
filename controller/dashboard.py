"""The live dashboard: what the controller knows, once a second, to whoever looks.

Prometheus gets the same numbers.

    /          the page
    /events    server-sent events: the state as JSON
    /charts    the run's curves so far, drawn here, as a fragment of HTML
    /metrics   for Prometheus

Nothing is computed while nobody looks. Without a token only this machine may ask, by a name of its
own (so that no web page elsewhere can make a browser ask in its stead).
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from config import DashboardSection
from controller.admission import Admission
from controller.shard_registry import EngineStatus
from controller.signals import SignalRouter
from controller.turns import TurnRunner
from protocol.arrays import finite_or_none
from protocol.router import display_name
from telemetry.html.headline import live_headline
from telemetry.html.report import render_dashboard, render_live_charts
from telemetry.sinks.metrics_file import Record, read_metrics
from telemetry.sinks.prometheus import CONTENT_TYPE, exposition
from telemetry.sinks.status_file import read_status

EVENT_SECONDS = 1.0
"""Seconds between two events."""
MAX_TURNS = 8
"""How many turns under way are shown."""
MAX_ACTORS = 200
"""How many actors are shown."""
DECISIONS = {
    "intervene": "thinking cut",
    "resample": "sampled again",
    "keep": "kept, though stalled",
}
"""Kind of a decision of control -> what was done."""
REASONS = {
    "settled": "its uncertainty had settled",
    "budget": "control.max_thinking was reached",
    "stalled": "as uncertain as the turn before",
    "early": "all but certain to be as the turn before",
    "repetition": "it repeated itself",
    "stuck": "the engine made no progress",
}
"""Reason of a decision of control -> the words for it."""
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
COOKIE = "foray_token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
        "'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class DashboardSource(Protocol):
    """Knows what the dashboard shows."""

    def dashboard_state(self) -> dict:
        """The state of now, as JSON can hold it."""
        ...

    def last_gauges(self) -> Mapping[str, float | None]:
        """The latest numbers."""
        ...

    def set_viewers(self, viewers: int) -> None:
        """Take note of how many look, when that changes."""
        ...


class Dashboard:
    """Serves at `address` (http://host:port) until canceled."""

    def __init__(
        self,
        address: str,
        settings: DashboardSection,
        metrics_file: Path,
        source: DashboardSource,
    ) -> None:
        self._address = address
        self._token = settings.token
        self._metrics_file = metrics_file
        self._source = source
        self._viewers = 0
        self._records: list[Record] = []
        self._records_bytes = -1  # of the file that they were read from

    async def run(self) -> None:
        app = web.Application(middlewares=[self._middleware()])
        for path, handler in {
            "/": self._page,
            "/events": self._events,
            "/charts": self._charts,
            "/metrics": self._metrics,
        }.items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        address = urlsplit(self._address)
        try:
            await web.TCPSite(runner, address.hostname, address.port).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    # --- who may ask

    def _middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            response = await handler(request)
            if not response.prepared:
                response.headers.update(HEADERS)
                if "token" in request.query:
                    response.set_cookie(
                        COOKIE, request.query["token"], httponly=True, samesite="Strict"
                    )
            return response

        return guard

    def _refusal(self, request: web.Request) -> web.Response | None:
        if not self._token:
            if urlsplit(f"//{request.host}").hostname in LOCAL_NAMES:
                return None
            return web.Response(
                status=403, text="set dashboard.token to be asked by another name\n"
            )
        token = (
            request.headers.get("Authorization", "").removeprefix("Bearer ")
            or request.query.get("token")
            or request.cookies.get(COOKIE, "")
        )
        if hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        return web.Response(
            status=401, text="the token of dashboard.token is needed: /?token=...\n"
        )

    # --- what they get

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=render_dashboard(), content_type="text/html")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        self._count_viewer(+1)
        try:
            while True:
                event = msgspec.json.encode(self._build_event())
                await response.write(b"data: " + event + b"\n\n")
                await asyncio.sleep(EVENT_SECONDS)
        except (ConnectionResetError, asyncio.CancelledError):
            return response
        finally:
            self._count_viewer(-1)

    async def _charts(self, request: web.Request) -> web.Response:
        return web.Response(text=render_live_charts(self._read()), content_type="text/html")

    async def _metrics(self, request: web.Request) -> web.Response:
        body = exposition(
            self._source.last_gauges(), self._last("update"), self._last("evaluation")
        )
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    def _build_event(self) -> dict:
        """The state of now, as templates/dashboard.js shows it."""
        run_dir = self._metrics_file.parent
        state = self._source.dashboard_state()
        status = read_status(run_dir)
        headline = live_headline(status, self._read(), state["goal"])
        return {
            **state,
            "run": run_dir.name,
            "directory": str(run_dir),
            "headline": headline._asdict(),
            "status": status,
            "last": self._last("update"),
            "evaluation": self._last("evaluation"),
        }

    def _count_viewer(self, change: int) -> None:
        self._viewers += change
        self._source.set_viewers(self._viewers)

    def _last(self, kind: str) -> Record:
        return next((record for record in reversed(self._read()) if record["kind"] == kind), {})

    def _read(self) -> list[Record]:
        """The run's records, read again when there are more."""
        size_bytes = 0
        if self._metrics_file.exists():
            size_bytes = self._metrics_file.stat().st_size
        if size_bytes != self._records_bytes:
            self._records = read_metrics(self._metrics_file)
            self._records_bytes = size_bytes
        return self._records


def describe_turn_id(turn_id: str) -> str:
    """The episode and the turn that the engine's name of a response is of: t24.6, turn 5.

    Turns count from 1, as in a prompt.
    """
    parts = turn_id.split(".")
    if len(parts) < 4:
        return turn_id
    group, member, _, turn, *_ = parts
    return f"{group}.{member}, turn {int(turn) + 1}"


def dashboard_state(
    turns: TurnRunner,
    signals: SignalRouter,
    engines: list[EngineStatus],
    admission: Admission,
    last_seen: Mapping[bytes, float],
    decode: Callable[[list[int]], str],
) -> dict:
    """Describe turns under way with their tokens, the latest decisions, engines and actors.

    It is as JSON can hold it. Turns and decisions are those of the controller's own engines.
    """
    now = time.monotonic()
    playing = Counter(holder.actor for holder in admission.leased.values())
    return {
        "turns": [
            {
                "name": describe_turn_id(turn.turn_id),
                "tokens": [decode([token]) for token in turn.tokens],
                "uncertainty": list(map(finite_or_none, turn.scores)),
            }
            for turn in signals.view_turns(MAX_TURNS)
        ],
        "decisions": [
            {
                "turn": turn,
                "what": DECISIONS.get(event.kind, event.kind),
                "why": REASONS.get(event.reason, event.reason),
                "value": finite_or_none(event.value),
                "threshold": finite_or_none(event.threshold),
            }
            for turn, event in reversed(turns.decisions)
        ],
        "engines": [
            {"url": url, "health": health, "turns": turn_count}
            for url, health, turn_count in engines
        ],
        "actors": [
            {
                "name": display_name(actor),
                "episodes": playing[actor],
                "silent": round(now - seen, 1),
            }
            for actor, seen in list(last_seen.items())[:MAX_ACTORS]
        ],
    }
