"""The live dashboard: what the controller knows, once a second, to whoever looks; and the same
numbers for Prometheus.

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
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from config import DashboardSection
from telemetry.html.report import render_live_charts, templates
from telemetry.sinks.metrics_file import Record, read_metrics
from telemetry.sinks.prometheus import CONTENT_TYPE, exposition
from telemetry.sinks.status_file import read_status

EVERY = 1.0
"""Seconds between two events."""
OWN_NAMES = ("127.0.0.1", "localhost", "::1")
COOKIE = "foray_token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
        "'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """Serves at `address` (http://host:port) until cancelled.

    `state`: what is shown, by calling it; `gauges`: the numbers of now; `looked_at`: told how many
    look, when that changes.
    """

    def __init__(
        self,
        address: str,
        settings: DashboardSection,
        metrics_file: Path,
        state: Callable[[], dict],
        gauges: Callable[[], dict[str, float | None]],
        looked_at: Callable[[int], None],
    ) -> None:
        self._address = address
        self._token = settings.token
        self._metrics_file = metrics_file
        self._state = state
        self._gauges = gauges
        self._looked_at = looked_at
        self._looking = 0
        self._records: tuple[int, list[Record]] = (-1, [])  # of a file of so many bytes

    async def run(self) -> None:
        app = web.Application(middlewares=[self._guarded])
        for path, handler in {
            "/": self._page,
            "/events": self._events,
            "/charts": self._charts,
            "/metrics": self._metrics,
        }.items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        where = urlsplit(self._address)
        try:
            await web.TCPSite(runner, where.hostname, where.port).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    # --- who may ask

    @property
    def _guarded(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            refused = self._refusal(request)
            if refused is not None:
                return refused
            response = await handler(request)
            if not response.prepared:
                response.headers.update(HEADERS)
                if "token" in request.query:
                    response.set_cookie(
                        COOKIE, request.query["token"], httponly=True, samesite="Strict"
                    )
            return response

        return guarded

    def _refusal(self, request: web.Request) -> web.Response | None:
        if not self._token:
            asked_as = urlsplit(f"//{request.host}").hostname
            return (
                None
                if asked_as in OWN_NAMES
                else web.Response(
                    status=403, text="set dashboard.token to be asked by another name\n"
                )
            )
        given = (
            request.headers.get("Authorization", "").removeprefix("Bearer ")
            or request.query.get("token")
            or request.cookies.get(COOKIE, "")
        )
        right = hmac.compare_digest(given.encode(), self._token.encode())
        return (
            None
            if right
            else web.Response(
                status=401, text="the token of dashboard.token is needed: /?token=...\n"
            )
        )

    # --- what they get

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(
            text=templates().get_template("dashboard.html").render(), content_type="text/html"
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        self._count(+1)
        try:
            while True:
                event = {
                    **self._state(),
                    "status": read_status(self._metrics_file.parent),
                    "last": self._last("update"),
                    "evaluation": self._last("evaluation"),
                }
                await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")
                await asyncio.sleep(EVERY)
        except (ConnectionResetError, asyncio.CancelledError):
            return response
        finally:
            self._count(-1)

    async def _charts(self, request: web.Request) -> web.Response:
        return web.Response(text=render_live_charts(self._read()), content_type="text/html")

    async def _metrics(self, request: web.Request) -> web.Response:
        body = exposition(self._gauges(), self._last("update"), self._last("evaluation"))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    def _count(self, change: int) -> None:
        self._looking += change
        self._looked_at(self._looking)

    def _last(self, kind: str) -> Record:
        return next((record for record in reversed(self._read()) if record["kind"] == kind), {})

    def _read(self) -> list[Record]:
        """The run's records, read again when there are more."""
        size = self._metrics_file.stat().st_size if self._metrics_file.exists() else 0
        if size != self._records[0]:
            self._records = (size, read_metrics(self._metrics_file))
        return self._records[1]
