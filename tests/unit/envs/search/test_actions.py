"""Reading a search or an answer out of a response."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import ParsedAction
from envs.search.actions import format_action, format_tags, parse_tags, read_action

PIECES = st.sampled_from(
    [
        "<search>",
        "</search>",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "<SEARCH>",
        "</Answer>",
        "Paro",
        " ",
        "\n",
        "]",
        "<",
        "é",
    ]
)
RESPONSES = st.lists(PIECES, max_size=14).map("".join) | st.text()


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        (
            "<think>x</think>\n<search>capital of Bhutan</search>",
            "<search> capital of Bhutan </search>",
            True,
        ),
        ("<answer>Thimphu</answer>", "<answer> Thimphu </answer>", True),
        (
            "Well. <search> capital\n of  Bhutan </search>\n",
            "<search> capital of Bhutan </search>",
            True,
        ),
        ("Paro lies there.</think>\n<search>Paro</search>", "<search> Paro </search>", True),
        ("<search>Paro</search> And so on.", "<search> Paro </search>", False),
        (
            "<search>Paro</search><information>It is so.</information> Then.",
            "<search> Paro </search>",
            False,
        ),
        ("<Information>It is so.</Information><answer>so</answer>", "<answer> so </answer>", False),
        ("<search>Paro</search><think>It is.</think>", "<search> Paro </search>", False),
        ("<think>I could <search>Paro</search> first</think>", "<search> Paro </search>", False),
        ("<think>Perhaps <search>Paro</search>", "<search> Paro </search>", False),
        (
            "<think>Not <search>Paro</search></think><search>Haa</search>",
            "<search> Haa </search>",
            False,
        ),
        ("<SEARCH>Paro</Search>", "<search> Paro </search>", True),
        ("<search></search>", "<search>  </search>", True),
        ("Thimphu", "", False),
        ("", "", False),
        ("<search>Paro", "", False),
        ("<action>search[Paro]</action>", "", False),
        ("<answer>a</answer><search>q</search>", "<search> q </search>", False),
        ("<search>q</search><answer>a</answer>", "<search> q </search>", False),
        ("<search>q</search><search>r</search>", "<search> q </search>", False),
        ("<answer>a</answer><answer>b</answer>", "<answer> a </answer>", False),
        ("<search>q <answer>a</answer>", "<answer> a </answer>", False),
    ],
)
def test_contract(response, action, valid):
    assert parse_tags(response) == ParsedAction(action, valid)


@given(RESPONSES)
def test_every_response_is_read_as_an_action_or_as_none(response):
    parsed = parse_tags(response)
    assert (read_action(parsed.action) == ("", "")) == (parsed.action == "")
    assert parsed.action or not parsed.valid


@given(RESPONSES)
def test_an_action_is_read_as_itself(response):
    action = parse_tags(response).action
    if action.count("<") == 2:  # or else its text has tags in it, and the response was not valid
        assert parse_tags(action) == ParsedAction(action, True)


@given(RESPONSES)
def test_a_valid_response_has_one_tag_of_one_kind(response):
    if parse_tags(response).valid:
        assert response.lower().count("<search>") + response.lower().count("<answer>") == 1


@given(
    st.sampled_from(["search", "answer"]),
    st.text(alphabet="ab [](){}.,é\n"),
    st.text(alphabet="ab .\n"),
)
def test_what_is_formatted_is_read_back(kind, text, thought):
    action = format_action(kind, text)
    assert parse_tags(format_tags(thought, action)) == ParsedAction(action, True)
    assert read_action(action) == (kind, " ".join(text.split()))
