"""Progress of a run: plain lines where nobody can see a panel, and how late an event loop runs."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from config import RunSection
from protocol.messages import Stats
from telemetry.probes.clocks import Lag, LoopLag
from telemetry.probes.waits import FIRST_WEIGHTS
from telemetry.progress import Progress, panel, status_line, time_left
from telemetry.state import RunState
from tests.fixtures.records import evaluated


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Show:
    """A run, and what its progress prints."""

    def __init__(
        self, file: io.StringIO | None = None, console: Console | None = None, minutes: float = 60.0
    ) -> None:
        self.now = 0.0
        self.file = file or io.StringIO()
        self.state = RunState(0.0)
        console = console or Console(file=self.file)
        self.progress = Progress(
            self.state,
            RunSection(max_updates=100, max_minutes=minutes),
            console,
            clock=lambda: self.now,
        )

    def send(self, event: str, **values: float | str) -> None:
        self.state.observe(Stats(source="learner", event=event, values=values), self.now)

    def tick(self, at: float) -> list[str]:
        """The lines that a tick at second `at` prints."""
        self.now = at
        before = len(self.file.getvalue())
        self.progress.tick()
        return self.file.getvalue()[before:].splitlines()


def training(updates: int = 4, seconds: float = 5.0) -> Show:
    """A run that has done so many updates, one every so many seconds, from second 0."""
    show = Show()
    show.send("phase", phase="training")
    for number in range(1, updates + 1):
        show.now = number * seconds
        show.send(
            "update",
            update=number,
            success=0.5,
            reward=5.0,
            valid_action_rate=0.75,
            token_age_mean=0.5,
            token_age_max=1,
            training_tokens=100 * number,
        )
    return show


def test_progress_responses_cut_off_are_warned_of_once() -> None:
    """From the first evaluation on, and not at each update again."""
    show = Show()
    show.send("phase", phase="evaluating")
    show.send("evaluation", update=0, truncated_share=1.0, episodes=64)
    (warning,) = [line for line in show.tick(1.0) if "cut off:" in line]
    assert "100.0 % of the turns were cut off" in warning
    show.send("update", update=1, truncated_share=0.9, episodes=64)
    assert not any("cut off:" in line for line in show.tick(2.0))


def test_a_change_of_phase_is_shown_at_once_and_once() -> None:
    show = Show()
    show.send("phase", phase="warm start", done=3, of=120)
    assert show.tick(1.0) == ["[  0:01]  warm start 3/120  1 s"]
    assert show.tick(1.25) == []


def test_a_long_phase_is_shown_every_ten_seconds() -> None:
    show = Show()
    show.send("phase", phase="engine")
    assert [len(show.tick(second)) for second in (0.0, 5.0, 9.9, 10.0, 15.0, 20.0)] == [
        1,
        0,
        0,
        1,
        0,
        1,
    ]


def test_a_step_within_a_phase_is_no_change_of_phase() -> None:
    show = Show()
    show.send("phase", phase="warm start", done=1, of=120)
    show.tick(0.0)
    show.send("phase", phase="warm start", done=2, of=120)
    assert show.tick(1.0) == []
    assert show.tick(10.0) == ["[  0:10]  warm start 2/120  10 s"]


def test_an_evaluation_is_shown_at_once() -> None:
    show = Show()
    show.tick(0.0)
    show.send("evaluation", update=20, **evaluated(0.4375, 128))
    first = "[  0:00]  held-out success 43.8 % (35.5 to 52.4) after 20 updates (games: 128)"
    assert show.tick(0.25) == [first]
    assert show.tick(0.5) == []
    # of a run that goes on from there
    show.send("evaluation", update=20, **evaluated(0.5, 128))
    second = "[  0:00]  held-out success 50.0 % (41.5 to 58.5) after 20 updates (games: 128)"
    assert show.tick(0.75) == [second]


def test_progress_just_after_an_evaluation_prints_no_status_of_it() -> None:
    show = Show()
    show.send("phase", phase="evaluating", done=15, of=16)
    show.tick(0.0)
    show.send("evaluation", update=1, **evaluated(0.5, 16))
    result = "[  0:09]  held-out success 50.0 % (28.0 to 72.0) after 1 update (games: 16)"
    assert show.tick(9.0) == [result]
    assert show.tick(10.0) == []


def test_progress_of_a_long_phase_says_what_is_left_and_what_it_came_to() -> None:
    """After ten steps a phase says when it ends; when it is over, what it came to stays."""
    show = Show()
    show.send("phase", phase="warm start", done=9, of=120, loss=2.0)
    assert show.tick(9.0) == ["[  0:09]  warm start 9/120  loss 2  9 s"]
    show.send("phase", phase="warm start", done=20, of=120, loss=0.5)
    assert show.tick(20.0) == ["[  0:20]  warm start 20/120  loss 0.5  20 s, about 1:40 min left"]
    show.send("phase", phase="warm start", done=120, of=120, loss=0.125)
    show.now = 120.0
    show.send("phase", phase="evaluating")
    assert show.tick(120.0)[0] == "[  2:00]  warm start 120/120  loss 0.125, in 2:00 min"


def test_progress_of_a_warm_start_longer_than_the_run_warns_once() -> None:
    """That run.max_minutes ends before the warm start does is said as soon as it is known."""
    show = Show(minutes=1.0)
    show.send("phase", phase="warm start", done=20, of=120)
    warnings = [line for line in show.tick(20.0) + show.tick(21.0) if "warning" in line]
    (line,) = warnings
    assert "ends after about 2:00 min" in line and "run.max_minutes (1)" in line
    short = Show(minutes=3.0)
    short.send("phase", phase="warm start", done=20, of=120)
    assert not [line for line in short.tick(20.0) if "warning" in line]


@pytest.mark.parametrize(("won", "is_said"), [(193, True), (500, False)])
def test_progress_of_demonstrations_that_are_mostly_lost_warns(won: int, is_said: bool) -> None:
    """How many demonstrations the expert won is said, and a warning where it is few."""
    show = Show()
    show.send("phase", phase="demonstrations", done=800, of=800, won=won)
    show.send("phase", phase="warm start")
    lines = show.tick(1.0)
    assert f"[  0:01]  demonstrations 800/800  {won} won, in 0 s" in lines
    said = f"the expert won {won} of 800 demonstrations ({won / 8:.1f} %)"
    assert any(said in line and "wasted_turn_rate" in line for line in lines) == is_said


def test_progress_before_the_first_update_says_how_much_of_a_batch_is_here() -> None:
    """The first update of a run takes long: the episodes that it waits for are counted."""
    show = Show()
    show.progress = Progress(
        show.state, RunSection(), Console(file=show.file), lambda: show.now, batch_episodes=64
    )
    show.send("phase", phase="training")
    show.send("gauge", queue_trajectories=34)
    assert show.tick(5.0) == ["[  0:05]  training 34 episodes here, an update takes 64   5 s"]


def test_progress_of_a_warm_start_says_nothing_of_who_waits_for_it() -> None:
    """That the controller waits for a policy while it is made is no news; later it is."""
    show = Show()
    show.send("phase", phase="warm start", done=1, of=100)
    show.state.observe(
        Stats(source="controller", event="waiting", values={FIRST_WEIGHTS: 90.0}), 0.0
    )
    assert not [line for line in show.tick(0.0) if "waits" in line]
    show.send("phase", phase="starting engines")
    assert [line for line in show.tick(1.0) if line.startswith("waiting: controller waits 1:31")]


def test_progress_of_a_new_phase_shows_no_wait_of_the_one_before() -> None:
    """It may be over with it; what still lasts is told again within a second."""
    show = Show()
    show.send("phase", phase="evaluating")
    words = "evaluation 0: 31 of 32 episodes are here"
    show.send("waiting", **{words: 80.0})
    assert words in show.tick(0.0)[-1]
    show.now = 1.0
    show.send("phase", phase="training")
    assert not [line for line in show.tick(1.25) if "wait" in line]
    show.send("waiting", **{words: 82.0})
    assert [line for line in show.tick(2.0) if words in line]


def test_progress_shows_lost_episodes_and_not_those_that_nobody_needs() -> None:
    """Episodes that are canceled at the end are no loss; those that failed are."""
    show = Show()
    show.send("phase", phase="training")
    show.send("drops", canceled=128, uninformative=8, stale=2, env_error=3)
    assert show.tick(0.0)[0].endswith("dropped 3 env_error, 2 stale")


def test_why_episodes_fail_is_shown_once_for_each_reason() -> None:
    show = Show()
    show.tick(0.0)
    show.send("failures", env_error="0.1: no room")
    assert show.tick(1.0) == [
        "warning: env_error: episode 0.1: no room (dropped, as others will be: they are only "
        "counted)"
    ]
    show.send("failures", env_error="0.1: no room", engine_error="3.0: gone")
    assert [line.split()[1] for line in show.tick(2.0)] == ["engine_error:"]


def test_training_is_shown_in_numbers() -> None:
    show = training()
    show.send("gauge", interventions=12, resamples=3)
    (line,) = show.tick(20.0)
    for part in (
        "update 4/100",
        "success 50.0 %",
        "reward 5.00",
        "valid 75.0 %",
        "thinking cut 12",
        "sampled again 3",
        "8:00 min left",
    ):
        assert part in line


def test_plain_lines_have_no_escape_codes_even_when_colour_is_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show = Show()
    with show.progress:
        show.send("phase", phase="[bold]warm[/bold]")
        show.tick(0.0)
        show.progress.print("[red]interrupted[/red]")
    assert "\x1b" not in show.file.getvalue()
    assert show.file.getvalue() == "[  0:00]  [bold]warm[/bold] 0 s\n[red]interrupted[/red]\n"


def test_a_terminal_gets_a_panel_that_vanishes_and_lines_that_stay() -> None:
    file = Terminal()
    console = Console(
        file=file, force_terminal=True, width=100, legacy_windows=False, _environ={"TERM": "xterm"}
    )
    show = Show(file, console)
    with show.progress:
        show.send("phase", phase="warm start", done=3, of=120)
        show.tick(1.0)
        show.progress.print("interrupted [1/2]")
    written = file.getvalue()
    assert "warm start" in written
    assert "interrupted [1/2]" in written
    assert "\x1b[2K" in written  # erases its lines


def test_terminal_keeps_evaluations_and_updates_in_lines_that_stay() -> None:
    """Above the panel each evaluation stays, and a line of an update every ten seconds."""
    file = Terminal()
    console = Console(
        file=file, force_terminal=True, width=120, legacy_windows=False, _environ={"TERM": "xterm"}
    )
    show = Show(file, console)
    with show.progress:
        show.send("evaluation", update=0, success=0.25, episodes=64)
        show.send("phase", phase="training")
        show.tick(10.0)
        for number in range(1, 5):
            show.now = 10.0 + 5.0 * number
            show.send("update", update=number, success=0.5, training_tokens=100 * number)
            show.tick(show.now)
    kept = [line for line in file.getvalue().splitlines() if "[  0:" in line]
    assert [line.partition("]")[2].split()[:3] for line in kept] == [
        ["held-out", "success", "25.0"],
        ["update", "1/100", "success"],
        ["update", "3/100", "success"],
    ]
    assert all(len(line[line.index("[  0:") :]) <= 80 for line in kept)


def test_bar_of_the_panel_shows_without_colors() -> None:
    """With NO_COLOR what is missing of a bar is drawn, too."""
    show = Show()
    show.send("phase", phase="warm start", done=30, of=120)
    assert "━" * 10 + "─" * 30 in drawn(show, 1.0)


def drawn(show: Show, at: float) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(panel(show.state, RunSection(max_updates=100, max_minutes=60.0), at))
    return console.file.getvalue()


def test_the_panel_shows_all_there_is() -> None:
    show = training()
    show.send("evaluation", update=0, success=0.25, episodes=64)
    show.send("evaluation", update=4, success=0.5, episodes=64)
    show.send(
        "gauge",
        generated_tokens=1000,
        interventions=12,
        resamples=3,
        queue_trajectories=5,
        queue_leases=6,
        turns_in_flight=7,
    )
    text = drawn(show, 20.0)
    for part in (
        "training",
        "4/100",
        "8:00 min left",
        "25.0 % -> 50.0 %",
        "▃▅",
        "thinking cut 12 times",
        "3 turns sampled again",
    ):
        assert part in text
    for part in ("episodes to train on 5", "to hand out 6", "turns in flight 7"):
        assert part in text


def test_the_panel_of_a_run_that_has_just_begun_shows_its_phase() -> None:
    assert "starting" in drawn(Show(), 1.0)


def test_a_phase_name_is_no_markup() -> None:
    show = Show()
    show.send("phase", phase="engine [gpu]")
    assert "engine [gpu]" in drawn(show, 1.0)


def test_the_status_shows_how_long_a_phase_without_an_end_has_lasted() -> None:
    show = Show()
    show.send("phase", phase="engine starting")
    assert (
        status_line(show.state, RunSection(max_updates=100, max_minutes=13.0), 25.0)
        == "engine starting 25 s"
    )


def test_time_left_follows_the_pace_of_the_updates() -> None:
    assert (
        time_left(
            training(updates=4, seconds=5.0).state,
            RunSection(max_updates=100, max_minutes=60.0),
            20.0,
        )
        == 96 * 5.0
    )


def test_time_left_counts_down_between_updates() -> None:
    assert (
        time_left(
            training(updates=4, seconds=5.0).state,
            RunSection(max_updates=100, max_minutes=60.0),
            23.0,
        )
        == 96 * 5.0 - 3.0
    )


def test_time_left_ends_with_the_minutes() -> None:
    assert (
        time_left(
            training(updates=4, seconds=5.0).state,
            RunSection(max_updates=100, max_minutes=2.0),
            20.0,
        )
        == 100.0
    )


def test_time_left_ends_with_the_minutes_of_the_whole_run() -> None:
    state = training(updates=4, seconds=5.0).state
    resumed = RunState(0.0, state.records)
    resumed.observe(Stats(source="learner", event="phase", values={"phase": "training"}), 5.0)
    assert (
        time_left(resumed, RunSection(max_updates=100, max_minutes=2.0), 10.0)
        == 120.0 - 20.0 - 10.0
    )


def test_time_left_ends_with_the_tokens() -> None:
    state = training(updates=4, seconds=5.0).state  # 100 tokens each
    assert (
        time_left(state, RunSection(max_updates=100, max_minutes=60.0, max_tokens=1000), 20.0)
        == 6 * 5.0
    )


def test_time_left_of_updates_without_tokens_follows_the_other_limits() -> None:
    """No pace of tokens can be told where none were counted."""
    show = training(updates=4, seconds=5.0)
    for tokens in ({}, {"training_tokens": None}, {"training_tokens": 100}):
        for record in show.state.records:
            record.pop("training_tokens", None)
            record |= tokens
        goal = RunSection(max_updates=100, max_tokens=1000)
        assert time_left(show.state, goal, 20.0) == 96 * 5.0


def test_time_left_is_never_negative() -> None:
    assert (
        time_left(
            training(updates=4, seconds=5.0).state, RunSection(max_updates=4, max_minutes=2.0), 50.0
        )
        == 0.0
    )


def test_time_left_is_unknown_before_there_is_a_pace() -> None:
    assert (
        time_left(training(updates=1).state, RunSection(max_updates=100, max_minutes=60.0), 5.0)
        is None
    )


def test_live_tokens_a_second_are_over_the_last_half_minute() -> None:
    state = RunState(0.0)
    for second in range(0, 61, 10):
        tokens = 100.0 * max(0, second - 30)
        state.observe(
            Stats(source="controller", event="gauge", values={"generated_tokens": tokens}),
            float(second),
        )
    assert state.generated_per_second(60.0) == 100.0


def test_no_tokens_are_no_tokens_a_second() -> None:
    assert RunState(0.0).generated_per_second(10.0) == 0.0


async def test_loop_lag_is_what_a_sleep_oversleeps() -> None:
    now = 0.0
    late = iter([0.0, 0.5, 0.25, -0.125])

    async def sleep(seconds: float) -> None:
        nonlocal now
        delay = next(late, None)
        if delay is None:
            raise asyncio.CancelledError
        now += seconds + delay

    lag = LoopLag(interval=0.25, clock=lambda: now, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await lag.run()
    assert lag.read() == Lag(worst=0.5, mean=0.75 / 4)


def test_loop_lag_starts_anew_with_every_read() -> None:
    lag = LoopLag()
    lag.record(0.5)
    lag.read()
    assert lag.read() == Lag(worst=0.0, mean=0.0)


async def test_a_blocked_loop_has_lag() -> None:
    lag = LoopLag(interval=0.001)
    task = asyncio.create_task(lag.run())
    await asyncio.sleep(0)  # it starts to measure
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.05
    while loop.time() < until:
        pass
    for _ in range(10):  # its timer is due: the loop only has to turn
        await asyncio.sleep(0)
    task.cancel()
    assert lag.read().worst >= 0.04
