"""The page of a report in a browser: what is drawn, sorted and filtered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.arrays import UINT8, unpack
from supervisor.cli.main import main
from telemetry.html.episode_view import (
    AttemptView,
    EpisodeView,
    TurnView,
)
from telemetry.html.report import RunData, render_report
from telemetry.sinks.metrics_file import read_metrics
from tests.fixtures.browser import open_browser
from tests.fixtures.runs import find_cut_episode


@pytest.fixture
async def page() -> AsyncIterator:
    """Page of a browser that has no network."""
    async with open_browser(offline=True) as opened:
        yield opened


def write_report(*arguments: object) -> None:
    assert main(["report", *map(str, arguments)]) == 0


async def test_a_browser_shows_every_point_and_the_intervention_where_the_record_says(
    acting_dir: Path, tmp_path: Path, page
) -> None:
    episode = find_cut_episode(acting_dir)
    write_report(acting_dir, "--episodes", episode.key.id, "--output", tmp_path / "report.html")
    await page.goto((tmp_path / "report.html").as_uri())
    lines = await page.eval_on_selector_all(
        "#learning .chart:first-child .x-0 .line",
        "lines => lines.map(line => line.points.length)",
    )
    records = read_metrics(acting_dir / "metrics.jsonl")
    assert lines == [sum(r["kind"] == kind for r in records) for kind in ("update", "evaluation")]
    tokens = await page.query_selector_all(".turn >> nth=0 >> .attempt:not(.rejected) .tokens span")
    classes = [await token.get_attribute("class") or "" for token in tokens]
    forced = [i for i, names in enumerate(classes) if "forced" in names]
    assert forced == [i for i, m in enumerate(unpack(episode.turns[0].kept.mask, UINT8)) if not m]
    assert "ratio" in await tokens[0].get_attribute("title")  # of the last checkpoint's policy
    mark = await page.query_selector(".turn >> nth=0 >> .chart .mark title")
    cut = next(event for event in episode.turns[0].kept.events if event.kind == "intervene")
    assert f"at token {cut.position}" in await mark.text_content()


async def open_page(page, path: Path, runs: list[RunData]) -> None:
    """Open a report of the runs in the browser."""
    path.write_text(render_report(runs))
    await page.goto(path.as_uri())


async def visible_labels(page) -> list[str]:
    return await page.eval_on_selector_all(
        ".x-label", "labels => labels.filter(l => l.checkVisibility()).map(l => l.textContent)"
    )


async def test_every_chart_is_drawn_once_over_the_x_axis_that_is_chosen(
    tmp_path: Path, page
) -> None:
    records = [
        {"kind": "update", "update": u, "wall_seconds": 60.0 * u, "training_tokens": 100 * u}
        | {"success": 0.5, "reward": 1.0}
        for u in (1, 2, 3)
    ]
    await open_page(page, tmp_path / "page.html", [RunData("run", records, {})])
    assert await visible_labels(page) == ["updates"] * 2
    for name, label in (("tokens", "tokens generated for training"), ("updates", "updates")):
        await page.click(f".choice :text-is('{name}')")
        assert await visible_labels(page) == [label] * 2


async def test_a_chart_says_the_values_where_one_points(tmp_path: Path, page) -> None:
    records = [
        {"kind": "update", "update": u, "wall_seconds": 1.0, "success": 0.25 * u} for u in (0, 1, 2)
    ]
    await open_page(page, tmp_path / "page.html", [RunData("run", records, {})])
    await page.hover("#learning .area")
    assert await page.text_content("#learning .readout") == "updates 1: 25 %"


async def test_a_table_is_sorted_by_the_column_that_is_clicked(tmp_path: Path, page) -> None:
    runs = [
        RunData(name, [{"kind": "update", "update": n, "wall_seconds": 60.0 * n}], {})
        for name, n in (("b", 10), ("a", 9), ("c", 100))
    ]
    await open_page(page, tmp_path / "page.html", runs)

    async def names() -> list[str]:
        return await page.eval_on_selector_all(
            "#summary tbody tr", "rows => rows.map(row => row.cells[0].textContent)"
        )

    assert await names() == ["b", "a", "c"]
    for column, order in (
        ("minutes", ["a", "b", "c"]),  # as numbers
        ("minutes", ["c", "b", "a"]),
        ("run", ["a", "b", "c"]),
    ):
        await page.click(f"#summary th button:text-is('{column}')")
        assert await names() == order
    assert await page.get_attribute("#summary th[aria-sort]", "aria-sort") == "ascending"


async def test_episodes_are_filtered_by_words_outcome_and_decisions(tmp_path: Path, page) -> None:
    kept = AttemptView([], True, ["thinking cut at token 3"], None, None)
    plain = AttemptView([], True, [], None, None)
    episodes = [
        EpisodeView("t0.0", "find a mug", "solved", [turn_with(kept)]),
        EpisodeView("t0.1", "find a plate", "solved", [turn_with(plain)]),
        EpisodeView("t1.0", "cool a mug", "not solved", [turn_with(plain)]),
    ]
    await open_page(page, tmp_path / "page.html", [RunData("run", [], {}, [], episodes)])

    async def list_visible() -> list[str]:
        ids = await page.eval_on_selector_all(
            ".episode", "all => all.filter(e => e.checkVisibility()).map(e => e.id)"
        )
        assert await page.text_content("#shown") == f"{len(ids)} of 3"
        return [name.removeprefix("run-") for name in ids]

    assert await list_visible() == ["t0.0", "t0.1", "t1.0"]
    await page.fill("[name=words]", "MUG")
    assert await list_visible() == ["t0.0", "t1.0"]
    await page.select_option("[name=outcome]", "not solved")
    assert await list_visible() == ["t1.0"]
    await page.select_option("[name=outcome]", "")
    await page.check("[name=decided]")
    assert await list_visible() == ["t0.0"]


def turn_with(attempt: AttemptView) -> TurnView:
    return TurnView(
        1, "what the agent was shown", "what is seen", "look", True, 0.0, None, None, [attempt]
    )


@pytest.mark.parametrize("width", [1400, 390])
async def test_nothing_of_a_report_is_beyond_the_edge(
    acting_dir: Path, tmp_path: Path, page, width: int
) -> None:
    write_report(acting_dir, "--output", tmp_path / "report.html")
    await page.set_viewport_size({"width": width, "height": 900})
    await page.goto((tmp_path / "report.html").as_uri())
    beyond = await page.eval_on_selector_all(
        "body *",
        "all => all.filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))",
    )
    assert beyond == []


async def test_long_names_of_runs_are_wrapped_on_a_phone(tmp_path: Path, page) -> None:
    """Names of a sweep's runs have all settings, and no space."""
    await page.set_viewport_size({"width": 390, "height": 900})
    records = [{"kind": "update", "update": 1, "wall_seconds": 1.0, "success": 0.5}]
    runs = [
        RunData(f"actors=64,max_staleness=4,control=t2po,seed={seed}", records, {"run.seed": seed})
        for seed in (0, 1)
    ]
    await open_page(page, tmp_path / "page.html", runs)
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
