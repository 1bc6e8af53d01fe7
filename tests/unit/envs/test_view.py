"""The history that an agent is shown."""

from envs.base import Observation
from envs.view import AgentView


def see(text: str) -> Observation:
    return Observation(text, ("look",))


def play(view: AgentView, steps: int) -> None:
    for number in range(1, steps + 1):
        view.record(f"action {number}", see(f"text {number + 1}"))


def test_a_fresh_view_is_at_step_one_and_has_no_past():
    view = AgentView("task", see("text 1"), history=2)
    assert (view.step, list(view.past), view.observation.text) == (1, [], "text 1")


def test_each_past_action_stands_with_the_observation_it_answered():
    view = AgentView("task", see("text 1"), history=5)
    play(view, 2)
    assert list(view.past) == [(1, "text 1", "action 1"), (2, "text 2", "action 2")]


def test_only_the_last_turns_are_kept():
    view = AgentView("task", see("text 1"), history=2)
    play(view, 5)
    assert [turn for turn, _, _ in view.past] == [4, 5]


def test_no_history_keeps_nothing():
    view = AgentView("task", see("text 1"), history=0)
    play(view, 3)
    assert (list(view.past), view.step) == ([], 4)


def test_the_memory_reads_every_observation_once_in_order():
    class Notes(list):
        def note(self, action: str, text: str) -> None:
            self.append((action, text))

    notes = Notes()
    play(AgentView("task", see("text 1"), history=0, memory=notes), 2)
    assert notes == [("", "text 1"), ("action 1", "text 2"), ("action 2", "text 3")]
