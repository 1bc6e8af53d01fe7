"""Search QA beside skyrl-gym's: when an answer is right, and whole episodes.

In these its environment asks our own retriever.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skyrl_gym.envs.search import utils as reference
from skyrl_gym.envs.search.env import SearchEnv, SearchEnvConfig

from envs.search.actions import parse_tags
from envs.search.environment import SearchEpisode
from envs.search.index import BM25Index
from envs.search.questions import Question
from envs.search.scoring import exact_match, normalize
from envs.search.server import build_app
from tests.fixtures.servers import serve_in_thread

TEXTS = st.text(alphabet=string.ascii_letters[:6] + "the .,-'é\n\t", max_size=24) | st.text(
    max_size=24
)
UNTAGGED = TEXTS.filter(lambda text: "<" not in text)
PASSAGES = [
    "The capital of Bhutan is Thimphu.",
    "The capital of Peru is Lima.",
    "Paro is in Bhutan.",
    "Lima is a city.",
]
INDEX = BM25Index(PASSAGES)


ANSWERS = TEXTS.filter(normalize)
"""Answers of which normalizing leaves something.

skyrl-gym takes any other answer for any target of which nothing is left, and we do not.
"""


@given(answer=ANSWERS, targets=st.lists(TEXTS, max_size=3))
def test_it_agrees_with_skyrl_gym(answer, targets):
    assert normalize(answer) == reference.normalize_answer(answer)
    assert exact_match(answer, targets) == bool(reference.em_check(answer, targets))


@given(
    thought=UNTAGGED,
    answer=ANSWERS.filter(lambda text: "<" not in text),
    targets=st.lists(TEXTS, min_size=1, max_size=3),
)
def test_a_response_with_an_answer_earns_what_it_does_in_skyrl_gym(thought, answer, targets):
    response = f"<think>{thought}</think> <answer>{answer}</answer>"
    episode = SearchEpisode(
        Question("Who?", tuple(targets), "test"), BM25Index(["x"]), topk=1, max_turns=1
    )
    assert episode.step(parse_tags(response).action).reward == reference.compute_score(
        response, {"target": targets}
    )


@pytest.fixture
def retriever() -> Iterator[str]:
    """Our server in a thread of its own: skyrl-gym's client blocks."""
    with serve_in_thread(build_app(INDEX)) as url:
        yield f"{url}/retrieve"


@pytest.mark.parametrize(
    "responses",
    [
        ["<think>Where?</think><search> capital of Bhutan </search>", "<answer>thimphu</answer>"],
        ["<search>Peru</search>", "<search>Lima city</search>", "<answer>Lima</answer>"],
        ["<answer> the Thimphu. </answer>"],
        ["<search>Paro</search>"] * 4,
        ["nothing at all", "<answer>Thimphu</answer>"],
    ],
)
def test_an_episode_goes_as_in_skyrl_gym(responses: list[str], retriever: str) -> None:
    theirs = SearchEnv(
        SearchEnvConfig(search_url=retriever, topk=2),
        {"reward_spec": {"ground_truth": {"target": ["Thimphu"]}}, "max_turns": 4},
    )
    ours = SearchEpisode(
        Question("What is the capital of Bhutan?", ("Thimphu",), "test"), INDEX, topk=2, max_turns=4
    )
    for response in responses:
        expected = theirs.step(response)
        got = ours.step(parse_tags(response).action)
        assert (got.reward, got.done) == (expected["reward"], expected["done"])
        if "<search>" in response and not got.done:
            shown = [
                passage for passage in PASSAGES if passage in expected["observations"][0]["content"]
            ]
            assert (
                shown
                and [passage for passage in PASSAGES if passage in got.observation.text] == shown
            )
