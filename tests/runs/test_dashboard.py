"""The live dashboard in a browser."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console

from config import Job
from supervisor.serial import train_serially
from telemetry.sinks.status_file import STATUS_FILE
from tests.fixtures.browser import await_script, open_browser
from tests.fixtures.dashboard import STATE, serve_dashboard
from tests.fixtures.runs import job_in, small_config


async def test_text_from_a_run_stays_text_in_a_browser(tmp_path: Path) -> None:
    script = (
        "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"
    )
    hostile = STATE | {
        "turns": [{"name": script, "tokens": [script, "a"], "uncertainty": [0.5, None]}],
        "decisions": [
            {"turn": script, "what": script, "why": script, "value": None, "threshold": 0.1}
        ],
        "actors": [{"name": script, "episodes": 1, "silent": 0.5}],
        "about": script,
    }
    status = {"host": socket.gethostname(), "pid": os.getpid(), "phase": "training"}
    (tmp_path / STATUS_FILE).write_text(json.dumps(status | {"warnings": {script: script}}))
    async with (
        serve_dashboard(tmp_path, state=hostile) as (address, _),
        open_browser(viewport={"width": 390, "height": 800}) as page,
    ):
        await page.goto(address)
        assert (
            await await_script(page, "document.querySelector('#turns .tokens span')?.textContent")
            == script
        )
        assert await await_script(page, "document.querySelectorAll('#charts .chart').length") == 2
        assert await page.title() == f"{tmp_path.name} · update 4 of 9", "what the run is called"
        warned = "document.querySelector('#warnings').textContent"
        assert await page.evaluate(warned) == f"{script}: {script}"
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "wider than a phone"
        )


async def test_the_first_line_says_the_state_and_the_next_step(tmp_path: Path) -> None:
    async with serve_dashboard(tmp_path) as (address, _), open_browser() as page:
        await page.goto(address)
        line = await await_script(
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
    async with serve_dashboard(tmp_path, state=state) as (address, _), open_browser() as page:
        await page.goto(address)
        await await_script(page, f"{read}.length === 3")
        await page.click("#actors th button:text-is('episodes')")
        assert await page.evaluate(read) == ["1", "2", "10"]
        actors.append({"name": "actor-5", "episodes": 5, "silent": 0.5})
        await await_script(page, f"{read}.length === 4")
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
        small_config(**imitating | acting, run__max_updates="20", env__max_turns="4"),
    )
    async with open_browser() as page:
        run = asyncio.create_task(train_serially(job, Console(quiet=True)))
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
        assert await await_script(page, heat) > 0
        assert await await_script(
            page,
            "[...document.querySelectorAll('#decisions td')].some(cell => cell.textContent === "
            "'thinking cut')",
        )
        assert await page.evaluate("document.querySelectorAll('#engines tr').length") == 2
        assert await page.evaluate("document.querySelectorAll('#actors tr').length") > 1
        await run
        assert await await_script(page, "document.getElementById('lost').hidden === false")
