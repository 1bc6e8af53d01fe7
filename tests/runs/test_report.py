"""`run.py report`: the page says what the runs' files say, and shows text as text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from controller.responses import dropped_episode
from learner.data.episode_log import EpisodeLog
from protocol.arrays import UINT8, unpack
from protocol.codec import encode
from protocol.messages import DropReason, EpisodeKey, Trajectory
from supervisor.cli.main import main
from supervisor.cli.report import EPISODES_SEARCHED, group_at, sample_episodes
from supervisor.recording import EPISODES_DIR, read_episodes
from telemetry.analysis.compare_runs import area_by_tokens
from telemetry.html.episode_view import (
    AttemptView,
    EpisodeView,
    TurnView,
    build_episode_view,
    describe_outcome,
)
from telemetry.html.report import AROUND, RunData, differing_settings, render_report
from telemetry.sinks.metrics_file import read_metrics
from tests.fixtures.runs import played_serially, small_config

SCRIPT = "<script>document.title = 'broken'</script><b>bold</b>"


@pytest.fixture(scope="module")
def recorded(imitating: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose turns are cut as soon as they think, and all sampled again."""
    acting = {
        "control__t2po__epsilon": "10",
        "control__t2po__min_thinking": "2",
        "control__t2po__window": "0",
        "control__t2po__eta": "10",
    }
    config = small_config(
        **imitating | acting,
        control__t2po__max_resamples="1",
        run__max_updates="2",
        env__max_turns="4",
    )
    return Path(played_serially(tmp_path_factory.mktemp("report") / "job", config).run_dir)


def written(*arguments: object) -> None:
    assert main(["report", *map(str, arguments)]) == 0


def cut_episode(run_dir: Path) -> Trajectory:
    """One that was trained on, in whose first turn thinking was cut before its end."""
    return next(
        e
        for _, e in read_episodes(run_dir / EPISODES_DIR)
        if not e.key.evaluation
        and e.turns
        and (unpack(e.turns[0].kept.mask, UINT8) == 0).any()
        and e.turns[0].kept.events
    )


def test_a_page_needs_nothing_but_itself(recorded: Path) -> None:
    written(recorded)
    page = (recorded / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import|<script[^>]""", page)
    assert page.count("<script") == 1


def test_each_run_has_a_row_and_a_colour_and_settings_that_differ_are_listed(
    recorded: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(recorded, other)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(
        config.replace("learning_rate = 8e-05", "learning_rate = 0.001")
    )
    written(recorded, other, "--output", tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    legend = re.findall(r'<line class="line (s\d)"[^>]*></svg>([^<]*)<', page)
    assert legend == [("s0", "job"), ("s1", "other")]
    assert (
        "<td>learner.learning_rate</td><td>8e-05</td><td>0.001</td>" in page
        and "learner.groups_per_update" not in page
    )


def test_a_run_without_episodes_is_shown_as_far_as_it_goes(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(recorded / "metrics.jsonl", tmp_path / "run" / "metrics.jsonl")
    written(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="summary"' in page and 'id="episodes"' not in page


def test_episodes_of_another_version_are_named(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded, tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / EPISODES_DIR)
    log = EpisodeLog.open(tmp_path / "old" / EPISODES_DIR)
    log.append([b"something else"])
    log.close()
    assert main(["report", str(tmp_path / "old")]) == 2
    assert "episodes was written by another version of this project" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run directory"),
        (["RUN", "--episodes", "t99.0"], "no episode t99.0"),
        (["RUN", "RUN"], "named twice"),
    ],
)
def test_what_cannot_be_shown_is_named(
    recorded: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["report", *(str(recorded) if a == "RUN" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_episodes_without_turns_are_left_out(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / EPISODES_DIR)
    log = EpisodeLog.open(tmp_path / "run" / EPISODES_DIR)
    played = cut_episode(recorded)
    other = msgspec.structs.replace(played.key, member=1 - played.key.member)
    dropped = msgspec.structs.replace(
        played, key=other, turns=[], drop_reason=DropReason.ENV_ERROR, detail="no such game"
    )
    log.append([encode(dropped), encode(played)])
    log.close()
    written(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('class="episode"') == 1


def test_text_of_an_episode_is_text(recorded: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(recorded, hostile)
    episode = cut_episode(recorded)
    turn = msgspec.structs.replace(episode.turns[0], action=SCRIPT, anchor=SCRIPT)
    shutil.rmtree(hostile / EPISODES_DIR)
    log = EpisodeLog.open(hostile / EPISODES_DIR)
    log.append(
        [encode(msgspec.structs.replace(episode, task=SCRIPT, turns=[turn, *episode.turns[1:]]))]
    )
    log.close()
    written(hostile)
    page = (hostile / "report.html").read_text()
    assert SCRIPT not in page and "&lt;script&gt;" in page
    assert not re.search(
        "<script>document|<b>bold",
        render_report(
            [
                RunData(
                    SCRIPT, [], {"a": SCRIPT}, [], [build_episode_view(episode, lambda ids: SCRIPT)]
                )
            ]
        ),
    )


def test_an_episode_is_shown_token_by_token_as_recorded(recorded: Path) -> None:
    episode = cut_episode(recorded)
    kept = episode.turns[0].kept
    shown = build_episode_view(
        episode, lambda ids: "".join(f"<{i}>" for i in ids), advantages=[0.5] * len(episode.turns)
    ).turns[0]
    assert [a.kept for a in shown.attempts] == [False] * len(episode.turns[0].rejected) + [True]
    tokens = shown.attempts[-1].tokens
    assert len(tokens) == kept.length and shown.advantage == 0.5
    cut = next(event.position for event in kept.events if event.kind == "intervene")
    assert [i for i, token in enumerate(tokens) if token.forced] == [
        i for i, m in enumerate(unpack(kept.mask, UINT8)) if not m
    ]
    assert min(i for i, token in enumerate(tokens) if token.forced) >= cut
    assert f"thinking cut at token {cut}: settled" in shown.attempts[-1].events[0]


def test_an_episode_that_was_dropped_is_shown_with_the_reason() -> None:
    def describe(detail: str) -> str:
        return describe_outcome(dropped_episode(EpisodeKey(0, 0), DropReason.ENV_ERROR, detail))

    assert (
        describe(detail="no room") == "dropped (env_error: no room)"
        and describe(detail="") == "dropped (env_error)"
    )


def test_a_boundary_of_weights_is_where_the_version_changes(recorded: Path) -> None:
    from protocol.messages import Span

    episode = cut_episode(recorded)
    kept = episode.turns[0].kept
    two = msgspec.structs.replace(kept, spans=[Span(0, 3, 4), Span(3, kept.length, 5)])
    changed = msgspec.structs.replace(
        episode, turns=[msgspec.structs.replace(episode.turns[0], kept=two)]
    )
    tokens = build_episode_view(changed, lambda ids: "x").turns[0].attempts[-1].tokens
    assert [token.version for token in tokens[:4]] == [4, 4, 4, 5]
    assert [i for i, token in enumerate(tokens) if token.first_of_version] == [3]


def test_sample_efficiency_is_the_mean_height_of_the_curve() -> None:
    updates = [{"update": u, "training_tokens": 100 * u} for u in (1, 2, 3)]
    evaluations = [
        {"update": 0, "success": 0.2},
        {"update": 1, "success": 0.6},
        {"update": 3, "success": 0.6},
    ]
    assert area_by_tokens(updates, evaluations) == pytest.approx((0.4 * 100 + 0.6 * 200) / 300)
    assert area_by_tokens(updates, evaluations[:1]) is None


def test_settings_that_say_where_are_no_differences() -> None:
    runs = [
        RunData("a", [], {"run.dir": "a", "run.seed": 0, "x.y": 1}),
        RunData("b", [], {"run.dir": "b", "run.seed": 1, "x.y": 1}),
    ]
    assert differing_settings(runs) == [("run.seed", [0, 1])]


@pytest.fixture
def page() -> Iterator:
    """Open a page of a real browser, Debian's Chromium, without a network.

    The test fails for what its console says.
    """
    sync = pytest.importorskip("playwright.sync_api", reason="no playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        opened = context.new_page()
        said: list[str] = []
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        yield opened
        browser.close()
        assert said == []


def test_a_browser_shows_every_point_and_the_intervention_where_the_record_says(
    recorded: Path, tmp_path: Path, page
) -> None:
    episode = cut_episode(recorded)
    written(recorded, "--episodes", episode.key.id, "--output", tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    lines = page.eval_on_selector_all(
        "#learning .chart:first-child .x-0 .line",
        "lines => lines.map(line => line.points.length)",
    )
    records = read_metrics(recorded / "metrics.jsonl")
    assert lines == [sum(r["kind"] == kind for r in records) for kind in ("update", "evaluation")]
    tokens = page.query_selector_all(".turn >> nth=0 >> .attempt:not(.rejected) .tokens span")
    forced = [
        i for i, token in enumerate(tokens) if "forced" in (token.get_attribute("class") or "")
    ]
    assert forced == [i for i, m in enumerate(unpack(episode.turns[0].kept.mask, UINT8)) if not m]
    assert "ratio" in tokens[0].get_attribute("title")  # of the last checkpoint's policy
    mark = page.query_selector(".turn >> nth=0 >> .chart .mark title")
    cut = next(event for event in episode.turns[0].kept.events if event.kind == "intervene")
    assert f"at token {cut.position}" in mark.text_content()


def open_page(page, path: Path, runs: list[RunData]) -> None:
    """Opens a report of the runs in the browser."""
    path.write_text(render_report(runs))
    page.goto(path.as_uri())


def visible_labels(page) -> list[str]:
    return page.eval_on_selector_all(
        ".x-label", "labels => labels.filter(l => l.checkVisibility()).map(l => l.textContent)"
    )


def test_every_chart_is_drawn_once_over_the_x_axis_that_is_chosen(tmp_path: Path, page) -> None:
    records = [
        {"kind": "update", "update": u, "wall_seconds": 60.0 * u, "training_tokens": 100 * u}
        | {"success": 0.5, "reward": 1.0}
        for u in (1, 2, 3)
    ]
    open_page(page, tmp_path / "page.html", [RunData("run", records, {})])
    assert visible_labels(page) == ["updates"] * 2
    for name, label in (("tokens", "tokens generated for training"), ("updates", "updates")):
        page.click(f".choice :text-is('{name}')")
        assert visible_labels(page) == [label] * 2


def test_a_chart_says_the_values_where_one_points(tmp_path: Path, page) -> None:
    records = [
        {"kind": "update", "update": u, "wall_seconds": 1.0, "success": 0.25 * u} for u in (0, 1, 2)
    ]
    open_page(page, tmp_path / "page.html", [RunData("run", records, {})])
    page.hover("#learning .area")
    assert page.text_content("#learning .readout") == "updates 1: 25 %"


def test_a_table_is_sorted_by_the_column_that_is_clicked(tmp_path: Path, page) -> None:
    runs = [
        RunData(name, [{"kind": "update", "update": n, "wall_seconds": 60.0 * n}], {})
        for name, n in (("b", 10), ("a", 9), ("c", 100))
    ]
    open_page(page, tmp_path / "page.html", runs)

    def names() -> list[str]:
        return page.eval_on_selector_all(
            "#summary tbody tr", "rows => rows.map(row => row.cells[0].textContent)"
        )

    assert names() == ["b", "a", "c"]
    for column, order in (
        ("minutes", ["a", "b", "c"]),  # as numbers
        ("minutes", ["c", "b", "a"]),
        ("run", ["a", "b", "c"]),
    ):
        page.click(f"#summary th button:text-is('{column}')")
        assert names() == order
    assert page.get_attribute("#summary th[aria-sort]", "aria-sort") == "ascending"


def test_episodes_are_filtered_by_words_outcome_and_decisions(tmp_path: Path, page) -> None:
    kept = AttemptView([], True, ["thinking cut at token 3"], None, None)
    plain = AttemptView([], True, [], None, None)
    episodes = [
        EpisodeView("t0.0", "find a mug", "solved", [turn_with(kept)]),
        EpisodeView("t0.1", "find a plate", "solved", [turn_with(plain)]),
        EpisodeView("t1.0", "cool a mug", "not solved", [turn_with(plain)]),
    ]
    open_page(page, tmp_path / "page.html", [RunData("run", [], {}, [], episodes)])

    def list_visible() -> list[str]:
        ids = page.eval_on_selector_all(
            ".episode", "all => all.filter(e => e.checkVisibility()).map(e => e.id)"
        )
        assert page.text_content("#shown") == f"{len(ids)} of 3"
        return [name.removeprefix("run-") for name in ids]

    assert list_visible() == ["t0.0", "t0.1", "t1.0"]
    page.fill("[name=words]", "MUG")
    assert list_visible() == ["t0.0", "t1.0"]
    page.select_option("[name=outcome]", "not solved")
    assert list_visible() == ["t1.0"]
    page.select_option("[name=outcome]", "")
    page.check("[name=decided]")
    assert list_visible() == ["t0.0"]


def turn_with(attempt: AttemptView) -> TurnView:
    return TurnView(0, "what is seen", "look", True, 0.0, None, None, [attempt])


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_of_a_report_is_beyond_the_edge(
    recorded: Path, tmp_path: Path, page, width: int
) -> None:
    written(recorded, "--output", tmp_path / "report.html")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    beyond = page.eval_on_selector_all(
        "body *",
        "all => all.filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))",
    )
    assert beyond == []


def test_of_a_long_log_no_more_episodes_are_read_than_are_looked_at(recorded: Path) -> None:
    """An episode that is not looked at is not read.

    Here it cannot be, and would end the command.
    """
    _, episode = next(read_episodes(recorded / EPISODES_DIR))
    every = 3
    records = [
        encode(episode) if number % every == 0 else b"no episode"
        for number in range(every * EPISODES_SEARCHED - 1)
    ]
    found = list(sample_episodes(records, recorded, (), "long", Console(quiet=True)))
    assert [number for number, _ in found] == list(range(0, len(records), every)) and len(
        found
    ) == EPISODES_SEARCHED


def test_a_group_is_found_around_one_of_its_episodes_and_nothing_beyond_it_is_read(
    recorded: Path,
) -> None:
    _, episode = next(read_episodes(recorded / EPISODES_DIR))
    groups = [7, 4, 4, 7, 4, 7]
    keys = [EpisodeKey(group, number) for number, group in enumerate(groups)]
    records = [
        encode(msgspec.structs.replace(episode, key=key)) for key in [*keys, EpisodeKey(4, 0, True)]
    ] + [b"no episode"] * 9
    found = group_at(records, 2, recorded, size=3)
    assert sorted(member.key.member for member in found) == [1, 2, 4]


def test_a_thousand_updates_and_their_episodes_are_a_small_page(recorded: Path) -> None:
    """Points are thinned and episodes sampled.

    A browser has no more to load after 1,000 updates than after 300.
    """
    (update,) = [r for r in read_metrics(recorded / "metrics.jsonl") if r["kind"] == "update"][:1]
    records = [
        update | {"update": u, "wall_seconds": float(u), "training_tokens": 100.0 * u}
        for u in range(1, 1001)
    ]
    assert (
        len(render_report([RunData("long", records, {}, [[0.5] * (2 * AROUND + 1)] * 2000)]))
        < 1_000_000
    )
