"""Search QA's episodes, settings and prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import EnvironmentFailure, Observation
from envs.registry import make_environment
from envs.search.environment import Search, SearchEpisode
from envs.search.index import BM25Index
from envs.search.prompt import NO_ACTION, NOTHING_FOUND
from envs.search.questions import Question
from envs.view import AgentView
from tests.fixtures.examples import scale_examples

SEARCH = Search()
QUESTION = Question(
    "What is the capital of the country whose internet domain is .mv?", ("Malé", "Male"), "domain"
)
TEXTS = (
    "The internet domain of Maldives is .mv.",
    "The capital of Maldives is Malé.",
    "The capital of Peru is Lima.",
)
INDEX = BM25Index(TEXTS)


def episode(max_turns: int = 4) -> SearchEpisode:
    return SearchEpisode(QUESTION, INDEX, topk=2, max_turns=max_turns)


@pytest.mark.slow
def test_it_is_registered():
    assert make_environment("search", history=2).name == "search"


def test_a_search_shows_the_best_passages_line_by_line():
    result = episode().step("<search>capital of Maldives</search>")
    assert result.observation == Observation(
        "<information>\nDoc 1: The capital of Maldives is Malé.\nDoc 2: The capital of Peru is "
        "Lima.\n</information>",
        (),
    )
    assert (result.reward, result.done, result.success) == (0.0, False, False)


def test_passages_of_several_lines_are_shown_in_one():
    shown = (
        SearchEpisode(QUESTION, BM25Index(['"Maldives"\nIslands.']), 3, 4)
        .step("<search>Maldives</search>")
        .observation.text
    )
    assert shown.splitlines()[1] == 'Doc 1: "Maldives" Islands.'


def test_a_search_that_finds_nothing_says_so():
    assert episode().step("<search>zebra</search>").observation.text == NOTHING_FOUND


@pytest.mark.parametrize("answer", ["Malé", "the male.", " Male"])
def test_a_right_answer_ends_the_episode_with_1(answer):
    result = episode().step(f"<answer>{answer}</answer>")
    assert (result.reward, result.done, result.success) == (1.0, True, True)


@pytest.mark.parametrize("answer", ["Lima", "", "Malé in Maldives"])
def test_a_wrong_answer_ends_the_episode_with_0(answer):
    result = episode().step(f"<answer>{answer}</answer>")
    assert (result.reward, result.done, result.success, result.truncated) == (
        0.0,
        True,
        False,
        False,
    )


@pytest.mark.parametrize("action", ["", "Malé", "<search>Malé", "search[Malé]"])
def test_anything_else_takes_a_turn_and_is_told_so(action):
    played = episode(max_turns=2)
    assert played.step(action).observation.text == NO_ACTION
    assert played.step(action).done


def test_the_last_turn_may_be_the_answer():
    played = episode(max_turns=2)
    played.step("<search>capital of Maldives</search>")
    assert played.step("<answer>Malé</answer>").success


def test_a_finished_episode_cannot_go_on():
    played = episode()
    played.step("<answer>Lima</answer>")
    with pytest.raises(RuntimeError, match="over"):
        played.step("<search>Paro</search>")


def test_searches_are_counted():
    played = episode()
    for action in (
        "<search>Maldives</search>",
        "nothing",
        "<search>zebra</search>",
        "<answer>Lima</answer>",
    ):
        played.step(action)
    assert played.scores["searches"] == 2


def test_the_type_of_a_task_is_the_source_of_its_question():
    assert episode().task_type == "domain"


# The anchor


def anchor(*queries: str) -> str:
    played = episode(max_turns=20)
    for query in queries:
        played.step(f"<search>{query}</search>")
    return played.state_key()


QUERIES = st.lists(
    st.sampled_from(["Maldives", "capital", "capital of Peru", ".mv", "zebra"]), max_size=5
)


@given(QUERIES)
def test_moments_are_the_same_when_the_same_passages_were_shown(queries):
    assert anchor(*queries) == anchor(*queries[::-1]) == anchor(*queries, *queries)


@given(QUERIES, QUERIES)
def test_moments_differ_when_other_passages_were_shown(first, second):
    shown = [
        {text for query in queries for text in INDEX.retrieve(query, 2)}
        for queries in (first, second)
    ]
    assert (anchor(*first) == anchor(*second)) == (shown[0] == shown[1])


# Settings


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"topk": 0}, r"env\.settings\.topk"),
        ({"url": "nowhere"}, r"env\.settings\.url"),
        ({"url": "http://host", "corpus": "file"}, r"env\.settings\.url and env\.settings\.corpus"),
        ({"corpus": "nowhere.jsonl"}, r"env\.settings\.corpus"),
        ({"questions": "nowhere.jsonl"}, r"env\.settings\.questions"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(chosen, named):
    with pytest.raises(ValueError, match=named):
        Search(**chosen)


@pytest.mark.slow
def test_the_number_of_passages_can_be_set():
    found = (
        Search(topk=5).start("train", 0).step("<search>capital of Bhutan</search>").observation.text
    )
    assert found.count("Doc ") == 5


def test_a_failing_retriever_is_no_wrong_answer():
    class Broken:
        def retrieve(self, query: str, topk: int) -> list[str]:
            raise EnvironmentFailure("down")

    played = SearchEpisode(QUESTION, Broken(), 3, 1)
    with pytest.raises(EnvironmentFailure, match="down"):
        played.step("<search>Maldives</search>")
    assert played.step("<answer>Malé</answer>").success


# The prompt


def after(*actions: str, history: int = 4) -> AgentView:
    played = episode()
    view = AgentView(played.task, played.observation, history=history)
    for action in actions:
        view.record(action, played.step(action).observation)
    return view


def test_the_first_prompt_is_the_question_and_the_format():
    lines = SEARCH.prompt(after()).splitlines()
    assert lines[0] == f"Question: {QUESTION.text}"
    assert lines[1].startswith("Step 1: Answer with <think>")
    assert len(lines) == 2


def test_the_prompt_recalls_what_was_searched_and_found():
    view = after("<search> domain .mv </search>", "<search> capital of Maldives </search>")
    assert SEARCH.prompt(view).splitlines()[1:] == [
        "Step 1: <search> domain .mv </search>",
        "<information>",
        "Doc 1: The internet domain of Maldives is .mv.",
        "</information>",
        "Step 2: <search> capital of Maldives </search>",
        "<information>",
        "Doc 1: The capital of Maldives is Malé.",
        "Doc 2: The capital of Peru is Lima.",
        "</information>",
        SEARCH.prompt(view).splitlines()[-1],
    ]


def test_turns_beyond_the_history_are_forgotten():
    prompt = SEARCH.prompt(
        after(
            "<search>domain .mv</search>",
            "<search>Peru</search>",
            "<search>zebra</search>",
            history=1,
        )
    )
    assert "domain of Maldives" not in prompt
    assert "Step 3: <search>zebra</search>" in prompt


@scale_examples(30)
@given(st.text(max_size=400))
def test_no_response_breaks_the_layout_of_the_prompt(text):
    action = SEARCH.parse(f"<search>{text}</search>", ()).action
    prompt = SEARCH.prompt(after(action))
    assert prompt.startswith(f"Question: {QUESTION.text}\nStep 1: <search>")
    assert len(prompt.split("\n")) <= 7
    assert len(prompt) < 700
