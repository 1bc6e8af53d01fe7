"""Reading actions out of responses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.response import TAIL, format_think_action, parse_think_action

ADMISSIBLE = ("look", "go to cabinet 1", "take mug 1 from shelf 2")
TAGS = ("<think>", "</think>", "<action>", "</action>")

white_space = st.text(" \n\t", max_size=4)
# Text without tags or Chinese characters.
plain = st.text(st.characters(exclude_characters="<>", max_codepoint=0x2FF), max_size=60)
actions = st.sampled_from(ADMISSIBLE)


@given(white_space, plain, white_space, actions, white_space)
def test_the_required_format_is_valid(before, thought, between, action, after):
    parsed = parse_think_action(
        f"{before}<think>{thought}</think>{between}<action> {action}\n</action>{after}", ADMISSIBLE
    )
    assert (parsed.action, parsed.valid) == (action, True)


@given(plain, actions)
def test_what_is_formatted_is_read_back(thought, action):
    assert parse_think_action(format_think_action(thought, action), ADMISSIBLE).valid


@given(plain, actions)
def test_case_does_not_matter(thought, action):
    parsed = parse_think_action(format_think_action(thought, action).upper(), ADMISSIBLE)
    assert (parsed.action, parsed.valid) == (action, True)


@given(plain, actions, plain.filter(str.strip), st.integers(0, 2))
def test_text_outside_the_tags_is_invalid_but_the_action_is_executed(thought, action, stray, where):
    parts = [f"<think>{thought}</think>", f"<action>{action}</action>"]
    parts.insert(where, stray)
    parsed = parse_think_action("".join(parts), ADMISSIBLE)
    assert (parsed.action, parsed.valid) == (action, False)


@given(plain, actions, st.sampled_from(TAGS))
def test_a_missing_tag_is_invalid(thought, action, missing):
    assert not parse_think_action(
        format_think_action(thought, action).replace(missing, ""), ADMISSIBLE
    ).valid


@given(plain, actions, st.sampled_from(TAGS), st.data())
def test_a_repeated_tag_is_invalid(thought, action, tag, data):
    response = format_think_action(thought, action)
    where = data.draw(st.integers(0, len(response)))
    if response[:where] + tag + response[where:] != response:
        assert not parse_think_action(response[:where] + tag + response[where:], ADMISSIBLE).valid


@given(actions)
def test_an_action_before_the_thought_is_invalid(action):
    assert parse_think_action(
        f"<action>{action}</action><think>so</think>", ADMISSIBLE
    ) == parse_think_action(f"<action>{action}</action>")


@pytest.mark.parametrize(
    "response",
    ["<think>我去</think><action>look</action>", "<think></think><action>look一</action>"],
)
def test_chinese_characters_are_invalid(response):
    assert not parse_think_action(response).valid


def test_an_action_that_is_not_admissible_is_invalid_but_executed():
    parsed = parse_think_action(format_think_action("why not", "Fly away"), ADMISSIBLE)
    assert (parsed.action, parsed.valid) == ("fly away", False)


def test_without_a_list_of_admissible_actions_any_action_is_valid():
    assert parse_think_action(format_think_action("", "search[red shoes]")).valid


def test_admissible_actions_match_whatever_their_case():
    assert parse_think_action(format_think_action("", "click[Buy Now]"), ("click[Buy Now]",)).valid


def test_of_two_actions_the_first_is_executed():
    parsed = parse_think_action(
        "<think>a</think><action>look</action><action>go to cabinet 1</action>", ADMISSIBLE
    )
    assert (parsed.action, parsed.valid) == ("look", False)


@given(plain)
def test_without_an_action_block_the_end_of_the_response_is_executed(response):
    parsed = parse_think_action(response, ADMISSIBLE)
    assert (parsed.action, parsed.valid) == (response.lower()[-TAIL:].strip(), False)


@given(
    st.lists(
        st.one_of(st.text(max_size=10), st.sampled_from(TAGS), st.sampled_from(["look", "我"])),
        max_size=12,
    ).map("".join)
)
def test_any_text_gives_an_action_that_is_stripped_and_in_lower_case(response):
    parsed = parse_think_action(response, ADMISSIBLE)
    assert parsed.action == parsed.action.strip().lower()
    assert not parsed.valid or parsed.action in ADMISSIBLE
