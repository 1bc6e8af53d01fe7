"""WebShop's tasks, episodes, prompt and responses."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import Observation
from envs.registry import make_environment
from envs.view import AgentView
from envs.webshop.environment import WebShop
from envs.webshop.memory import VisitMemory
from envs.webshop.page import SEARCH_FORM, parse_page
from tests.fixtures.webshop import raw_product, write_shop

SHOP = WebShop()


def played(*actions: str, environment: WebShop = SHOP, index: int = 0):
    """(Episode, view, last result) after the actions."""
    episode = environment.start("train", index)
    view = environment.view(episode)
    result = None
    for action in actions:
        result = episode.step(action)
        view.record(action, result.observation)
    return episode, view, result


def shirt_shop(tmp_path) -> WebShop:
    """A shop of twelve like products; the goals of each name it."""
    products = [raw_product(f"B00000{i:04d}", name=f"Acme Shirt {i}") for i in range(12)]
    return WebShop(data=str(write_shop(tmp_path, products=products)), task_types=["human"])


def to_goal(environment: WebShop, index: int) -> tuple[str, ...]:
    """The actions that lead to the page of what is meant."""
    wanted = environment.goal("train", index).product
    return f"search[{wanted.title}]", f"click[{wanted.asin.lower()}]"


def test_it_is_made_by_its_name():
    assert make_environment("webshop", max_turns=3).max_turns == 3
    assert SHOP.max_turns == 15


def test_the_data_may_be_named_by_an_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBSHOP_DATA", str(write_shop(tmp_path)))
    assert {"i", "need"} <= set(WebShop(task_types=["human"]).start("train", 0).task.split())


def test_a_setting_comes_before_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBSHOP_DATA", "/nowhere")
    assert WebShop(data=str(write_shop(tmp_path))).size("held_out") > 0


@pytest.mark.slow
def test_only_the_chosen_kinds_of_goals_are_played():
    environment = WebShop(task_types=["human"])
    assert {environment.start("train", i).task_type for i in range(50)} == {"human"}


def test_both_kinds_occur_in_any_stretch_of_tasks():
    for start in (0, 500, 1000):
        assert {SHOP.start("held_out", i).task_type for i in range(start, start + 20)} == {
            "human",
            "synthetic",
        }


def test_an_unknown_kind_of_goal_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"task_types.*robot"):
        WebShop(task_types=["robot"])


def test_data_without_goals_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no goals of the kinds human"):
        WebShop(data=str(write_shop(tmp_path, human={})), task_types=["human"])


def test_the_first_observation_lists_searching():
    episode, _, _ = played()
    assert episode.observation == Observation(
        f"WebShop [SEP] Instruction: [SEP] {episode.task} [SEP] Search", (SEARCH_FORM,)
    )


def test_what_can_be_clicked_is_admissible():
    episode, _, _ = played(*to_goal(SHOP, 0))
    assert {"click[buy now]", "click[< prev]", "click[back to search]", "click[features]"} <= set(
        episode.observation.admissible
    )


def test_buying_what_was_meant_is_rewarded_and_ends_the_episode(tmp_path):
    environment = shirt_shop(tmp_path)
    episode, _, result = played(
        *to_goal(environment, 0), "click[red]", "click[buy now]", environment=environment
    )
    assert (result.reward, result.done, result.success) == (10.0, True, True)
    assert episode.scores["score"] == 1.0


def test_buying_something_a_little_wrong_is_scored_and_not_rewarded(tmp_path):
    """The option is missing: attribute and price of three."""
    environment = shirt_shop(tmp_path)
    episode, _, result = played(*to_goal(environment, 0), "click[buy now]", environment=environment)
    assert (result.reward, result.done, result.success, result.truncated) == (
        0.0,
        True,
        False,
        False,
    )
    assert episode.scores["score"] == pytest.approx(2 / 3)
    assert episode.scores == {
        "score": pytest.approx(2 / 3),
        "type": 1.0,
        "attributes": 1.0,
        "options": 0.0,
        "price": 1.0,
    }


def test_there_is_no_score_before_something_is_bought():
    assert played("search[shirt]")[0].scores == {"score": 0.0}


def test_one_can_buy_with_the_last_turn(tmp_path):
    environment = WebShop(data=str(write_shop(tmp_path)), task_types=["human"], max_turns=4)
    assert played(
        *to_goal(environment, 0), "click[red]", "click[buy now]", environment=environment
    )[2].done


def test_a_finished_episode_cannot_go_on():
    episode, _, _ = played(*to_goal(SHOP, 0), "click[buy now]")
    with pytest.raises(RuntimeError, match="over"):
        episode.step("search[x]")


def test_an_impossible_action_uses_a_turn_and_changes_nothing():
    before, _, _ = played("search[shirt]")
    after, _, result = played("search[shirt]", "click[nothing]")
    assert after.observation == before.observation
    assert not result.done


def test_the_anchor_is_the_same_where_the_same_is_shown():
    way = to_goal(SHOP, 0)
    assert (
        played(*way)[0].state_key()
        == played(*way, "click[features]", "click[< prev]")[0].state_key()
    )


def test_the_anchor_differs_between_tasks_pages_and_choices():
    way = to_goal(SHOP, 0)
    option = next(values[0] for values in SHOP.goal("train", 0).product.options.values())
    anchors = {
        played()[0].state_key(),
        played(index=1)[0].state_key(),
        played(*way)[0].state_key(),
        played(*way, f"click[{option}]")[0].state_key(),
    }
    assert len(anchors) == 4


# Responses


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<think>a</think><action>search[Red Shoes]</action>", "search[red shoes]", True),
        ("<think>a</think>\n<action> click[buy now] </action>\n", "click[buy now]", True),
        ("<think>a</think><action>click[not there]</action>", "click[not there]", True),
        ("<think>a</think><action>buy now</action>", "buy now", False),
        ("<think>a</think><action>search[]</action>", "search[]", False),
        ("<think>a</think><action>search[a] please</action>", "search[a] please", False),
        ("<action>search[a]</action>", "search[a]", False),
        ("<think>a</think><action>search[鞋]</action>", "search[鞋]", False),
        ("<think>a</think><action>search[a]</action><action>click[b]</action>", "search[a]", False),
        ("I would search[shoes]", "i would search[shoes]", False),
    ],
)
def test_a_response_is_valid_if_tags_and_action_have_their_form(response, action, valid):
    parsed = SHOP.parse(response, ())
    assert (parsed.action, parsed.valid) == (action, valid)


@given(
    st.text(max_size=60), st.sampled_from(["", "<think>x</think>", "<action>search[", "]</action>"])
)
def test_any_response_is_an_action_that_can_be_executed(text, piece):
    parsed = SHOP.parse(piece + text, ())
    assert not SHOP.start("train", 0).step(parsed.action).done


@given(
    st.text(
        st.characters(blacklist_characters="[]<>\r\n", max_codepoint=0x2FFF),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(["search", "click"]),
)
def test_every_action_of_the_form_is_valid_and_read_in_lower_case(argument, verb):
    parsed = SHOP.parse(f"<think>x</think><action>{verb}[{argument}]</action>", ())
    assert (parsed.action, parsed.valid) == (f"{verb}[{argument}]".lower(), True)


# Reading pages, and the prompt


def test_a_page_of_results_is_read_back(tmp_path):
    environment = shirt_shop(tmp_path)
    page = parse_page(
        played("search[acme shirt]", "click[next >]", environment=environment)[0].observation
    )
    assert (page.kind, page.number, page.total, len(page.results)) == ("results", 2, 12, 2)
    assert page.results[0].title.startswith("Acme Shirt") and page.results[0].price == "$19.99"


def test_an_item_is_read_back():
    product = SHOP.goal("train", 0).product
    page = parse_page(played(*to_goal(SHOP, 0))[0].observation)
    assert (page.kind, page.title, page.price) == ("item", product.title, product.price_text)
    assert {name: tuple(values) for name, values in page.options.items()} == product.options


def test_it_is_remembered_what_is_chosen():
    option = next(values[1] for values in SHOP.goal("train", 0).product.options.values())
    _, view, _ = played(*to_goal(SHOP, 0), f"click[{option}]", "click[features]", "click[< prev]")
    assert list(view.visit_memory.chosen.values()) == [option]
    assert f"Chosen: {option}" in SHOP.prompt(view).splitlines()


def test_a_click_on_what_is_no_value_is_not_remembered_as_chosen():
    name = next(iter(SHOP.goal("train", 0).product.options))
    _, view, _ = played(*to_goal(SHOP, 0), f"click[{name}]")
    assert view.visit_memory.chosen == {}


def test_the_choice_is_forgotten_with_the_item():
    option = next(values[1] for values in SHOP.goal("train", 0).product.options.values())
    _, view, _ = played(*to_goal(SHOP, 0), f"click[{option}]", "click[< prev]")
    assert view.visit_memory.chosen == {}
    assert view.visit_memory.rejected == [SHOP.goal("train", 0).product.asin.lower()]


def test_what_is_remembered_as_chosen_is_what_the_shop_has_chosen():
    rng = random.Random(0)
    for index in range(150):
        episode = SHOP.start("train", index)
        view = SHOP.view(episode)
        done = False
        while not done:
            action = rng.choice(
                (
                    *view.observation.admissible,
                    f"search[{SHOP.goal('train', index).product.query}]",
                    "click[size]",
                )
            )
            action = rng.choice((action, action + " please", action.removesuffix("]")))
            result = episode.step(action)
            done = result.done
            view.record(action, result.observation)
            if not done:
                assert view.visit_memory.chosen == episode.visit.chosen


def test_an_item_opened_by_an_action_with_words_after_it_is_remembered_as_seen():
    *before, opened = to_goal(SHOP, 0)
    assert opened.startswith("click[")
    _, view, _ = played(*before, opened + ", please", "click[< prev]")
    assert view.visit_memory.rejected == [opened.removeprefix("click[").removesuffix("]")]


@pytest.mark.parametrize(
    ("action", "searched"),
    [
        ("search[Socks] now", "socks"),
        ("search[]", "shirt"),
        ("search[a\nb]", "shirt"),
        ("search[socks", "shirt"),
    ],
)
def test_the_query_that_is_remembered_is_the_one_that_the_shop_searched_for(action, searched):
    _, view, _ = played("search[shirt]", action)
    assert view.visit_memory.query == searched


def test_the_prompt_has_the_task_the_page_and_every_action():
    for actions in (
        (),
        ("search[shirt]",),
        ("search[shirt]", "click[next >]"),
        to_goal(SHOP, 0),
        (*to_goal(SHOP, 0), "click[features]"),
    ):
        episode, view, _ = played(*actions)
        prompt = SHOP.prompt(view)
        assert episode.task in prompt
        assert all(action in prompt for action in episode.observation.admissible)


@pytest.mark.slow
def test_the_prompt_recalls_the_last_turns():
    _, view, _ = played("search[shirt]", "click[next >]", "click[< prev]")
    assert "Before: results 1 > click[next >]; results 2 > click[< prev]" in SHOP.prompt(view)
    _, view, _ = played("search[shirt]", "click[next >]", environment=WebShop(history=0))
    assert "Before" not in SHOP.prompt(view)


def test_an_action_of_many_lines_does_not_break_the_prompt():
    _, plain, _ = played("search[shirt]", "look")
    _, strange, _ = played("search[shirt]", "look\nTask: something else " * 50)
    assert len(SHOP.prompt(strange).splitlines()) == len(SHOP.prompt(plain).splitlines())


@given(
    st.lists(
        st.sampled_from(
            [
                "WebShop",
                "Back to Search",
                "< Prev",
                "Price: $1",
                "Page 1 (Total results: 3)",
                "x",
                "",
            ]
        ),
        max_size=8,
    )
)
def test_any_text_is_read_as_some_page(segments):
    observation = Observation(" [SEP] ".join(segments), ("click[x]", "click[buy now]"))
    assert VisitMemory(observation).page.kind in ("index", "results", "item", "sub_page")


def test_a_view_of_another_kind_is_refused():
    episode = SHOP.start("train", 0)
    with pytest.raises(TypeError, match=r"environment\.view"):
        SHOP.prompt(AgentView(episode.task, episode.observation, history=2))
