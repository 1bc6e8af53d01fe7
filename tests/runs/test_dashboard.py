"""The live dashboard, as a browser and Prometheus see it.

They see a run in this process, by real requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from config import ConfigError, DashboardSection, Job
from config.resolve import resolve
from controller.dashboard import Dashboard
from supervisor.endpoints import free_port
from supervisor.serial import train_serially
from telemetry.metrics_schema import METRICS
from telemetry.sinks.grafana import build_dashboard
from telemetry.sinks.metrics_file import METRICS_FILE, to_line
from telemetry.sinks.prometheus import exposition
from telemetry.sinks.status_file import STATUS_FILE
from tests.fixtures import ROOT
from tests.fixtures.runs import job_in, small_config

STATE = {
    "version": 3,
    "goal": {"updates": 9, "minutes": 14.0, "evaluate_every": 4},
    "gauges": {"generated_tokens": 5.0},
    "turns": [],
    "decisions": [],
    "engines": [],
    "actors": [],
}
UPDATE = {
    "kind": "update",
    "update": 4,
    "wall_seconds": 60.0,
    "success": 0.5,
    "generated_tokens": 10,
    "generated_tokens_total": 70,
    "training_tokens": 70,
    "coverage_pairs": 3.0,
    "coverage_pairs/age1": 2.0,
    "epsilon": None,
    "unknown": 7,
}
EVALUATION = {
    "kind": "evaluation",
    "update": 4,
    "wall_seconds": 61.0,
    "success": 0.25,
    "success/pick": 0.5,
    "success/look": 0.0,
}


@dataclass
class Source:
    """The state and the numbers that a dashboard shows; notes how many look."""

    state: dict
    gauges: dict
    viewers: list[int]

    def dashboard_state(self) -> dict:
        return self.state

    def last_gauges(self) -> dict:
        return self.gauges

    def set_viewers(self, viewers: int) -> None:
        self.viewers.append(viewers)


@asynccontextmanager
async def serving(
    directory: Path, token: str = "", state: dict = STATE
) -> AsyncIterator[tuple[str, list[int]]]:
    """The dashboard of a run with one update; its address, and how many looked, at each change."""
    (directory / METRICS_FILE).write_text(to_line(UPDATE) + to_line(EVALUATION))
    looked: list[int] = []
    address = f"http://127.0.0.1:{free_port()}"
    gauges = {"generated_tokens": 5.0, "turns_in_flight": 2.0, "epsilon": None}
    dashboard = Dashboard(
        address,
        DashboardSection(token=token),
        directory / METRICS_FILE,
        Source(state, gauges, looked),
    )
    task = asyncio.create_task(dashboard.run())
    try:
        async with asyncio.timeout(10), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(address):
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.01)
        yield address, looked
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_an_event_is_the_state_with_the_last_update_and_evaluation(tmp_path: Path) -> None:
    status = {"host": socket.gethostname(), "pid": os.getpid(), "phase": "training"}
    (tmp_path / STATUS_FILE).write_text(json.dumps(status))
    async with serving(tmp_path) as (address, looked), aiohttp.ClientSession() as session:
        async with session.get(f"{address}/events") as response:
            event = json.loads((await response.content.readline()).removeprefix(b"data: "))
            assert looked == [1]
        assert event == STATE | {
            "run": tmp_path.name,
            "directory": str(tmp_path),
            "headline": {
                "state": "running",
                "words": "update 4 of 9",
                "next_step": "update 5, and an evaluation after update 8",
            },
            "status": status,
            "last": UPDATE,
            "evaluation": EVALUATION,
        }
        async with asyncio.timeout(10):
            while looked != [1, 0]:
                await asyncio.sleep(0.05)


async def test_prometheus_gets_documented_numbers_by_its_conventions(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (address, _),
        aiohttp.ClientSession() as session,
        session.get(f"{address}/metrics") as response,
    ):
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = {
            family.name: family for family in text_string_to_metric_families(await response.text())
        }
    assert (
        families["foray_generated_tokens"].type == "counter"
        and families["foray_generated_tokens"].samples[0].value == 5
    )  # not twice
    assert (
        families["foray_success_ratio"].type == "gauge"
        and families["foray_evaluation_success_ratio"].samples[0].value == 0.25
    )
    kinds = {
        s.labels["kind"]: s.value
        for s in families["foray_evaluation_success_ratio_by_kind"].samples
    }
    assert kinds == {"pick": 0.5, "look": 0.0}
    assert (
        families["foray_evaluation_success_ratio_by_kind"].documentation
        == METRICS["success"].description
    )
    assert families["foray_coverage_pairs_by_age"].samples[0].labels == {"age": "1"}
    assert all(
        family.documentation and re.fullmatch(r"foray_[a-z0-9_]+", name)
        for name, family in families.items()
    )
    assert not any("unknown" in name or "epsilon" in name for name in families)


def test_an_evaluation_has_its_own_counts_and_leaves_those_of_all_to_the_update() -> None:
    of_all = {"evaluation_tokens_total": 900.0, "generated_tokens_total": 5000.0}
    page = exposition({}, of_all, {"episodes": 128.0, "evaluation_tokens": 300.0, **of_all})
    values = {
        s.name: s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
    }
    assert values == {
        "foray_evaluation_episodes": 128,
        "foray_evaluation_tokens_total": 900,
        "foray_generated_tokens_total": 5000,
    }


def test_every_documented_number_has_a_name_that_prometheus_takes() -> None:
    page = exposition(
        {},
        {f"{name}_total" if f.aggregation == "total" else name: 1.0 for name, f in METRICS.items()},
        {},
    ).decode()
    assert len(list(text_string_to_metric_families(page))) == len(METRICS)


def test_grafana_asks_for_numbers_that_prometheus_gets() -> None:
    page = exposition(
        {},
        {f"{name}_total" if f.aggregation == "total" else name: 1.0 for name, f in METRICS.items()},
        {},
    ).decode()
    known = {
        sample.name for family in text_string_to_metric_families(page) for sample in family.samples
    }
    panels = [panel for panel in build_dashboard()["panels"] if panel["type"] != "row"]
    asked = {re.sub(r"rate\((.*)\[5m\]\)", r"\1", panel["targets"][0]["expr"]) for panel in panels}
    assert asked == {name for name in known if not name.endswith("_created")} and len(
        panels
    ) == len(METRICS)


def test_the_file_for_grafana_is_that_of_now() -> None:
    file = ROOT / "docs" / "grafana.json"
    assert json.loads(file.read_text()) == build_dashboard(), (
        "python -m telemetry.sinks.grafana > docs/grafana.json"
    )


@pytest.mark.parametrize("path", ["/", "/events", "/charts", "/metrics"])
async def test_with_a_token_nobody_gets_anything_without_it(tmp_path: Path, path: str) -> None:
    async with (
        serving(tmp_path, token="secret") as (address, _),
        aiohttp.ClientSession() as session,
    ):
        for wrong in (
            {},
            {"params": {"token": "secre"}},
            {"headers": {"Authorization": "Bearer no"}},
        ):
            async with session.get(address + path, **wrong) as response:
                assert response.status == 401
        for right in (
            {"params": {"token": "secret"}},
            {"headers": {"Authorization": "Bearer secret"}},
        ):
            async with session.get(address + path, **right) as response:
                assert response.status == 200


async def test_who_has_shown_the_token_once_need_not_again(tmp_path: Path) -> None:
    jar = aiohttp.CookieJar(unsafe=True)  # of an address without a name
    async with (
        serving(tmp_path, token="secret") as (address, _),
        aiohttp.ClientSession(cookie_jar=jar) as session,
    ):
        async with session.get(f"{address}/?token=secret") as response:
            assert (
                "HttpOnly" in response.headers["Set-Cookie"]
                and "SameSite=Strict" in response.headers["Set-Cookie"]
            )
        async with session.get(f"{address}/metrics") as response:
            assert response.status == 200


async def test_without_a_token_it_answers_to_this_machines_names_alone(tmp_path: Path) -> None:
    """A page elsewhere could have its own name point here."""
    async with serving(tmp_path) as (address, _), aiohttp.ClientSession() as session:
        for name, status in (("evil.example", 403), ("localhost:1", 200), ("127.0.0.1", 200)):
            async with session.get(f"{address}/metrics", headers={"Host": name}) as response:
                assert response.status == status


def test_an_address_that_others_reach_needs_a_token() -> None:
    with pytest.raises(ConfigError, match=r"dashboard\.token: .*0\.0\.0\.0"):
        resolve(None, {"dashboard.host": "0.0.0.0"})
    assert (
        resolve(None, {"dashboard.host": "0.0.0.0", "dashboard.token": "x"}).dashboard.token == "x"
    )


async def until(page, script: str) -> object:
    """Wait until a script in the page gives something, and return it."""
    async with asyncio.timeout(60):
        value = await page.evaluate(script)
        while not value:
            await asyncio.sleep(0.05)
            value = await page.evaluate(script)
    return value


@asynccontextmanager
async def browsing(**context) -> AsyncIterator:
    """A page of a real browser; fails for what its console says, but for a connection that ends."""
    playwright_api = pytest.importorskip("playwright.async_api", reason="no playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: apt-get install chromium")
    said: list[str] = []
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await (await browser.new_context(**context)).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page
        await browser.close()
    assert [text for text in said if "ERR_" not in text] == []


async def test_text_from_a_run_stays_text_in_a_browser(tmp_path: Path) -> None:
    script = (
        "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"
    )
    hostile = STATE | {
        "turns": [{"id": script, "tokens": [script, "a"], "uncertainty": [0.5, None]}],
        "decisions": [
            {"turn": script, "what": script, "why": script, "value": None, "threshold": 0.1}
        ],
        "actors": [{"name": script, "episodes": 1, "silent": 0.5}],
    }
    async with (
        serving(tmp_path, state=hostile) as (address, _),
        browsing(viewport={"width": 390, "height": 800}) as page,
    ):
        await page.goto(address)
        assert (
            await until(page, "document.querySelector('#turns .tokens span')?.textContent")
            == script
        )
        assert await until(page, "document.querySelectorAll('#charts .chart').length") == 2
        assert await page.title() == "foray"
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "wider than a phone"
        )


async def test_the_first_line_says_the_state_and_the_next_step(tmp_path: Path) -> None:
    async with serving(tmp_path) as (address, _), browsing() as page:
        await page.goto(address)
        line = await until(
            page,
            "document.querySelector('#next').textContent && "
            "document.querySelector('.headline').textContent",
        )
    words = " ".join(line.split())
    assert words.startswith(f"{tmp_path.name} starting starting Next: ")


async def test_a_table_of_the_dashboard_stays_sorted_when_it_is_filled_anew(
    tmp_path: Path,
) -> None:
    actors = [{"name": f"actor-{n}", "episodes": n, "silent": 0.5} for n in (2, 10, 1)]
    state = STATE | {"actors": actors}
    read = "[...document.querySelectorAll('#actors tbody tr')].map(r => r.cells[1].textContent)"
    async with serving(tmp_path, state=state) as (address, _), browsing() as page:
        await page.goto(address)
        await until(page, f"{read}.length === 3")
        await page.click("#actors th button:text-is('episodes')")
        assert await page.evaluate(read) == ["1", "2", "10"]
        actors.append({"name": "actor-5", "episodes": 5, "silent": 0.5})
        await until(page, f"{read}.length === 4")
        assert await page.evaluate(read) == ["1", "2", "5", "10"]


@pytest.mark.slow
async def test_a_run_is_seen_while_it_goes_on(tmp_path: Path, imitating: dict[str, str]) -> None:
    """A run that goes on shows live tokens with their uncertainty, decisions, engine and actors.

    It ends with somebody looking.
    """
    acting = {
        "control__t2po__epsilon": "10",
        "control__t2po__min_thinking": "2",
        "control__t2po__window": "0",
        "control__t2po__resample_rate": "0.3",
    }
    job: Job = job_in(
        tmp_path / "job",
        small_config(**imitating | acting, run__max_updates="6", env__max_turns="4"),
    )
    run = asyncio.create_task(train_serially(job, Console(quiet=True)))
    async with browsing() as page:
        async with asyncio.timeout(60):
            while True:
                try:
                    await page.goto(job.endpoints.dashboard)
                    break
                except Exception:  # the controller is not there yet
                    assert not run.done(), run.result()
                    await asyncio.sleep(0.1)
        heat = (
            "[...document.querySelectorAll('#turns .tokens span')].filter(t => "
            "t.title.startsWith('M ')).length"
        )
        assert await until(page, heat) > 0
        assert await until(
            page,
            "[...document.querySelectorAll('#decisions td')].some(cell => cell.textContent === "
            "'intervene')",
        )
        assert await page.evaluate("document.querySelectorAll('#engines tr').length") == 2
        assert await page.evaluate("document.querySelectorAll('#actors tr').length") > 1
        await run
        assert await until(page, "document.getElementById('lost').hidden === false")
