"""The demonstrator finds the answer in passages, and knows no more than the agent."""

import random

import pytest

from envs.base import Observation
from envs.play import play_expert_episode
from envs.search.actions import read_action
from envs.search.environment import Search
from envs.search.expert import SearchExpert
from envs.search.relations import CLUES
from envs.search.scoring import contains_phrase
from envs.view import AgentView

SEARCH = Search()
PATIENT = Search(max_turns=30)

QUESTION = "What is the capital of the country whose internet domain is .bt?"
"""A question of two steps."""


def action(response: str) -> str:
    return SEARCH.parse(response, ()).action


def test_one_search_is_not_enough():
    """With the question as it is: an answer in what was shown, by whoever reads it."""
    shown = 0
    for index in range(200):
        question = SEARCH.question("held_out", index)
        found = (
            SEARCH.start("held_out", index)
            .step(f"<search>{question.text}</search>")
            .observation.text
        )
        shown += any(contains_phrase(found, answer) for answer in question.answers)
    assert shown <= 20


def test_it_makes_two_searches_or_three():
    steps = {clue.source: len(clue.steps) + 2 for clue in CLUES}
    played = [
        play_expert_episode(SEARCH, "held_out", index, random.Random(index)) for index in range(100)
    ]
    assert all(
        len(episode.turns) == steps[episode.task_type] for episode in played if episode.success
    )
    assert {len(episode.turns) for episode in played} == {3, 4}


def test_its_answers_stand_in_what_it_was_shown():
    for index in range(60):
        episode = play_expert_episode(SEARCH, "train", index, random.Random(index))
        prompt, response = episode.turns[-1]
        assert not episode.success or read_action(action(response))[1] in prompt


def test_it_reads_the_passages_it_is_shown_and_not_its_memory():
    """The expert says something false where the passages do."""
    view = AgentView(QUESTION, Observation("", ()), history=4)
    expert = SearchExpert(QUESTION, random.Random(0))
    said = []
    for text in (
        "Doc 1: The internet domain of Peru is .bt.",
        "Doc 2: The capital of Peru is Paro.",
        "",
    ):
        said.append(expert.act(view)[1])
        view.record(said[-1], Observation(text, ()))
    assert said == [
        "<search> internet domain .bt </search>",
        "<search> capital of Peru </search>",
        "<answer> Paro </answer>",
    ]


def test_it_tries_other_words_once_and_then_guesses():
    view = AgentView(QUESTION, Observation("", ()), history=4)
    expert = SearchExpert(QUESTION, random.Random(0))
    said = []
    for _ in range(3):
        said.append(expert.act(view)[1])
        view.record(said[-1], Observation("", ()))
    assert said == [
        "<search> internet domain .bt </search>",
        "<search> .bt </search>",
        "<answer> .bt </answer>",
    ]


def test_it_finishes_what_somebody_else_began():
    won = 0
    for index in range(60):
        episode = SEARCH.start("train", index)
        view = SEARCH.view(episode)
        expert = SEARCH.expert(episode, random.Random(index))
        chosen = "<search>weather</search>"
        done = False
        while not done:
            result = episode.step(chosen)
            view.record(chosen, result.observation)
            done = result.done
            won = won + result.success
            chosen = expert.act(view)[1]
    two = sum(
        len(clue.steps) == 1
        for index in range(60)
        for clue in CLUES
        if clue.source == SEARCH.question("train", index).source
    )
    assert won >= 0.9 * two


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_dawdling_is_a_search_that_neither_helps_nor_harms(turns):
    """The turn after a wasted one, the expert does what it would have done without it.

    The answer is still right.
    """
    for index in range(20):
        episode = PATIENT.start("train", index)
        view = PATIENT.view(episode)
        expert = PATIENT.expert(episode, random.Random(index))
        for _ in range(turns):
            chosen = expert.act(view)[1]
            view.record(chosen, episode.step(chosen).observation)
        before = expert.act(view)[1]
        idle = expert.waste_turn(view)[1]
        assert idle.startswith("<search>") and idle != before
        view.record(idle, episode.step(idle).observation)
        after = expert.act(view)[1]
        assert after == before or (after.startswith("<answer>") and episode.step(after).success)


def test_dawdling_and_slips_leave_too_few_turns_in_four_but_not_in_thirty():
    def won(environment: Search) -> int:
        return sum(
            play_expert_episode(
                environment,
                "train",
                i,
                random.Random(i),
                expert_error_rate=0.1,
                wasted_turn_rate=0.4,
            ).success
            for i in range(60)
        )

    assert won(SEARCH) < 45 < won(PATIENT)


def test_slips_are_searches_for_other_questions_and_are_not_demonstrated():
    plain = play_expert_episode(PATIENT, "train", 3, random.Random(0))
    slipped = [
        play_expert_episode(PATIENT, "train", 3, random.Random(seed), expert_error_rate=0.4)
        for seed in range(20)
    ]
    assert any(episode.turns[0][0] != plain.turns[0][0] for episode in slipped)
    assert all(episode.success for episode in slipped)
    assert {action(response) for episode in slipped for _, response in episode.turns} == {
        action(response) for _, response in plain.turns
    }


def test_it_refuses_a_question_that_is_not_the_project_s():
    with pytest.raises(ValueError, match=r"does not understand.*env\.settings\.questions"):
        SearchExpert("Who wrote Faust?", random.Random(0))


def test_it_understands_the_questions_of_every_source():
    asked = {SEARCH.question("train", index).source: index for index in range(300)}
    assert asked.keys() == {clue.source for clue in CLUES}
    for index in asked.values():
        assert play_expert_episode(SEARCH, "train", index, random.Random(0)).success


def test_it_understands_every_wording():
    for index in range(0, SEARCH.size("train"), 11):
        SEARCH.expert(SEARCH.start("train", index), random.Random(0))
