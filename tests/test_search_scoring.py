"""When an answer is right."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.search.actions import parse_tags
from envs.search.environment import SearchEpisode
from envs.search.index import Index
from envs.search.questions import Question
from envs.search.scoring import is_right, mentions, normalize

TEXTS = st.text(alphabet=string.ascii_letters[:6] + "the .,-'é\n\t", max_size=24) | st.text(max_size=24)
UNTAGGED = TEXTS.filter(lambda text: "<" not in text)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Thimphu", "thimphu"),
        ("  the  Thimphu. ", "Thimphu"),
        ("The Hague", "Hague"),
        ("38,394 sq km", "38394 SQ KM"),
        (".bt", "BT"),
        ("Port-au-Prince", "portauprince"),
        ("a an the", "the"),
    ],
)
def test_spelling_articles_and_punctuation_make_no_difference(answer, target):
    assert is_right(answer, [target])


@pytest.mark.parametrize(
    ("answer", "target"),
    [("Thimphu in Bhutan", "Thimphu"), ("", "Thimphu"), ("Theodore", "odore"), ("Malé", "Male"), ("38 394", "38394"), ("an", "ana")],
)
def test_anything_else_makes_one(answer, target):
    assert not is_right(answer, [target])


def test_any_of_the_targets_will_do():
    assert is_right("Male", ["Malé", "Male"])


def test_without_targets_nothing_is_right():
    assert not is_right("Male", [])


@settings(deadline=None)
@given(TEXTS)
def test_normalising_twice_changes_nothing_more(text):
    once = normalize(text)
    assert normalize(once) == once


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [("Where is Paro Airport?", "paro airport", True), ("Where is Paro?", "Par", False), ("the .bt domain", "BT", True)],
)
def test_a_phrase_is_mentioned_word_by_word(text, phrase, expected):
    assert mentions(text, phrase) is expected


@pytest.fixture(scope="module")
def skyrl_gym():
    return pytest.importorskip(
        "skyrl_gym.envs.search.utils", reason="skyrl-gym, the reference for the reward, is not installed", exc_type=ImportError
    )


@settings(deadline=None)
@given(answer=TEXTS, targets=st.lists(TEXTS, max_size=3))
def test_it_agrees_with_skyrl_gym(skyrl_gym, answer, targets):
    assert normalize(answer) == skyrl_gym.normalize_answer(answer)
    assert is_right(answer, targets) == bool(skyrl_gym.em_check(answer, targets))


@settings(deadline=None)
@given(thought=UNTAGGED, answer=UNTAGGED, targets=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_response_with_an_answer_earns_what_it_does_in_skyrl_gym(skyrl_gym, thought, answer, targets):
    response = f"<think>{thought}</think> <answer>{answer}</answer>"
    episode = SearchEpisode(Question("Who?", tuple(targets), "test"), Index(["x"]), topk=1, max_turns=1)
    assert episode.step(parse_tags(response).action).reward == skyrl_gym.compute_score(response, {"target": targets})
