"""The live dashboard, as whoever asks for it gets it: events, numbers, a token."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from pathlib import Path
from typing import get_args, get_type_hints

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from config.resolve import resolve
from controller.dashboard import DECISIONS, REASONS, describe_turn_id
from controller.reporting import describe_job
from controller.rules.stall import Stall
from telemetry.metrics_schema import METRICS
from telemetry.sinks.status_file import STATUS_FILE
from tests.fixtures.dashboard import EVALUATION, STATE, UPDATE, serve_dashboard


@pytest.mark.slow
async def test_an_event_is_the_state_with_the_last_update_and_evaluation(tmp_path: Path) -> None:
    status = {"host": socket.gethostname(), "pid": os.getpid(), "phase": "training"}
    (tmp_path / STATUS_FILE).write_text(json.dumps(status))
    async with serve_dashboard(tmp_path) as (address, looked), aiohttp.ClientSession() as session:
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
        serve_dashboard(tmp_path) as (address, _),
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


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/events", "/charts", "/metrics"])
async def test_with_a_token_nobody_gets_anything_without_it(tmp_path: Path, path: str) -> None:
    async with (
        serve_dashboard(tmp_path, token="secret") as (address, _),
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
        serve_dashboard(tmp_path, token="secret") as (address, _),
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
    async with serve_dashboard(tmp_path) as (address, _), aiohttp.ClientSession() as session:
        for name, status in (("evil.example", 403), ("localhost:1", 200), ("127.0.0.1", 200)):
            async with session.get(f"{address}/metrics", headers={"Host": name}) as response:
                assert response.status == status


@pytest.mark.parametrize(
    ("turn_id", "name"),
    [
        ("t24.6.0.5.0.0.6c08fb72", "t24.6, turn 6"),
        ("e0.12.1.3.2.0.aa.cut", "e0.12, turn 4"),
        ("x", "x"),
    ],
)
def test_describe_turn_id_names_episode_and_turn(turn_id: str, name: str) -> None:
    """An engine's name of a response says which turn of which episode it is of."""
    assert describe_turn_id(turn_id) == name


def test_reasons_of_all_stalls_have_words() -> None:
    """Whatever makes control act is said in words."""
    assert set(get_args(get_type_hints(Stall)["reason"])) <= set(REASONS)
    assert set(DECISIONS) == {"intervene", "resample", "keep"}


def test_describe_job_says_what_is_trained() -> None:
    """The dashboard's second line has environment, model, algorithm and control."""
    config = resolve(None, {"actors": "8"})
    assert describe_job(config) == "alfworld, tiny, gigpo, control t2po, 8 actors"
