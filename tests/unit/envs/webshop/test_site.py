"""The shop's pages, what can be clicked on them, and what a click does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.webshop.site import Shop, Visit, parse_action
from tests.fixtures.webshop import product

SHIRT = product(
    "B00SHIRT01",
    "Acme Cotton Shirt",
    description="A plain shirt.",
    bullets=("Soft.", "Warm."),
    options={"color": ("navy", "red"), "size": ("small", "large")},
)
HATS = [
    product(f"B00HAT{i:04d}", f"Acme Hat {i}", query="hat", price_text=f"${i}.0") for i in range(60)
]
SHOP = Shop([SHIRT, *HATS])


def visit(*actions: str, shop: Shop = SHOP) -> Visit:
    visiting = Visit.begin(shop, "i need a shirt")
    for action in actions:
        visiting.act(action)
    return visiting


def segments(visiting: Visit) -> list[str]:
    return visiting.text().split(" [SEP] ")


ITEM = ("search[cotton]", "click[b00shirt01]")


def test_the_index_page():
    assert visit().text() == "WebShop [SEP] Instruction: [SEP] i need a shirt [SEP] Search"
    assert list(visit().clickable()) == ["search"]


def test_the_first_page_of_results_shows_ten_products():
    page = segments(visit("search[hat]"))
    assert page[:5] == [
        "Instruction:",
        "i need a shirt",
        "Back to Search",
        "Page 1 (Total results: 50)",
        "Next >",
    ]
    assert page[5:8] == ["B00HAT0000", "Acme Hat 0", "$0.0"]
    assert len(page) == 5 + 3 * 10
    assert list(visit("search[hat]").clickable())[:3] == ["back to search", "next >", "b00hat0000"]


def test_later_pages_of_results_can_be_turned_back():
    page = segments(visit("search[hat]", "click[next >]"))
    assert page[2:6] == ["Back to Search", "Page 2 (Total results: 50)", "< Prev", "Next >"]
    assert page[6] == "B00HAT0010"
    assert (
        visit("search[hat]", "click[next >]", "click[< prev]").text() == visit("search[hat]").text()
    )


def test_pages_past_the_end_are_empty_and_can_still_be_turned():
    past = visit("search[shirt]", "click[next >]", "click[next >]")
    assert segments(past)[2:] == ["Back to Search", "Page 3 (Total results: 1)", "< Prev", "Next >"]


def test_a_search_without_a_match_shows_an_empty_page():
    assert segments(visit("search[xyz]"))[2:] == [
        "Back to Search",
        "Page 1 (Total results: 0)",
        "Next >",
    ]


def test_the_page_of_an_item():
    assert segments(visit(*ITEM)) == [
        "Instruction:",
        "i need a shirt",
        "Back to Search",
        "< Prev",
        "color",
        "navy",
        "red",
        "size",
        "small",
        "large",
        "Acme Cotton Shirt",
        "Price: $20.0",
        "Rating: N.A.",
        "Description",
        "Features",
        "Reviews",
        "Buy Now",
    ]
    assert list(visit(*ITEM).clickable()) == [
        "back to search",
        "< prev",
        "description",
        "features",
        "reviews",
        "buy now",
        "navy",
        "red",
        "small",
        "large",
    ]


@pytest.mark.parametrize(
    ("name", "body"),
    [("description", ["A plain shirt."]), ("features", ["Soft.", "Warm."]), ("reviews", [])],
)
def test_sub_pages(name, body):
    page = visit(*ITEM, f"click[{name}]")
    assert segments(page) == ["Instruction:", "i need a shirt", "Back to Search", "< Prev", *body]
    assert list(page.clickable()) == ["back to search", "< prev"]


@pytest.mark.parametrize(
    ("bullets", "body"), [(("",), [""]), ((), []), (("\n",), []), (("  a  ", "b"), ["a", "b"])]
)
def test_empty_features_leave_what_webshop_s_reader_of_html_leaves(bullets, body):
    shop = Shop([product("B1", "Shirt", bullets=bullets)])
    assert segments(visit("search[shirt]", "click[b1]", "click[features]", shop=shop))[4:] == body


def test_an_empty_description_or_title_is_no_segment():
    shop = Shop([product("B1", "", description="")])
    shop.index.search = lambda query, limit: (0,)
    assert segments(visit("search[x]", shop=shop))[5:] == ["B1", "$20.0"]
    assert segments(visit("search[x]", "click[b1]", "click[description]", shop=shop))[4:] == []


def test_options_are_chosen_by_clicking_and_the_page_stays_the_same():
    chosen = visit(*ITEM, "click[red]", "click[small]", "click[navy]")
    assert chosen.chosen == {"color": "navy", "size": "small"}
    assert chosen.text() == visit(*ITEM).text()


def test_an_option_value_of_two_names_belongs_to_the_last():
    shop = Shop([product("B1", "Shirt", options={"color": ("one", "two"), "size": ("one",)})])
    assert visit("search[shirt]", "click[b1]", "click[one]", shop=shop).chosen == {"size": "one"}


def test_a_sub_page_leads_back_to_the_item_with_its_options():
    back = visit(*ITEM, "click[red]", "click[features]", "click[< prev]")
    assert (back.kind, back.chosen) == ("item", {"color": "red"})


def test_an_item_leads_back_to_its_page_of_results_without_options():
    back = visit("search[hat]", "click[next >]", "click[b00hat0012]", "click[< prev]")
    assert (back.kind, back.page) == ("results", 2)
    assert visit(*ITEM, "click[red]", "click[< prev]", "click[b00shirt01]").chosen == {}


@pytest.mark.parametrize("where", [("search[hat]",), ITEM, (*ITEM, "click[features]")])
def test_back_to_search_leads_to_the_index_page(where):
    assert visit(*where, "click[back to search]").text() == visit().text()


@pytest.mark.parametrize("where", [(), ("search[hat]",), ITEM, (*ITEM, "click[reviews]")])
def test_one_can_search_from_every_page(where):
    assert visit(*where, "search[shirt]").text() == visit("search[shirt]").text()


def test_buying_ends_the_visit_at_the_item():
    bought = visit(*ITEM, "click[red]", "click[buy now]")
    assert (bought.kind, bought.product, bought.chosen) == ("bought", SHIRT, {"color": "red"})


@pytest.mark.parametrize("where", [(), ("search[hat]",), ITEM, (*ITEM, "click[features]")])
@pytest.mark.parametrize(
    "action",
    [
        "",
        "buy",
        "search",
        "search[]",
        "click[search]",
        "click[nothing]",
        "click[color]",
        "Click[red]",
        "buy now[x]",
        "search[a\nb]",
    ],
)
def test_an_impossible_action_changes_nothing(where, action):
    before = visit(*where)
    after = visit(*where, action)
    assert (after.kind, after.text(), after.chosen) == (before.kind, before.text(), before.chosen)


@pytest.mark.parametrize(
    ("action", "parsed"),
    [
        ("search[Red Shoes]", ("search", "red shoes")),
        ("click[Buy Now]", ("click", "buy now")),
        ("search[a] and more", ("search", "a")),
        ("search[a[b]c]", ("", "")),
        ("please search[a]", ("", "")),
        ("search[a]b]", ("search", "a]b")),
    ],
)
def test_actions_are_read_as_webshop_reads_them(action, parsed):
    assert parse_action(action) == parsed


CLICKS = st.sampled_from(
    [
        "search[hat]",
        "search[shirt]",
        "search[zzz]",
        "click[next >]",
        "click[< prev]",
        "click[back to search]",
        "click[b00shirt01]",
        "click[b00hat0000]",
        "click[red]",
        "click[large]",
        "click[features]",
        "click[reviews]",
        "click[buy now]",
    ]
)


@given(st.lists(CLICKS, max_size=12))
def test_whatever_is_done_the_page_and_its_clickables_agree(actions):
    visiting = visit(*actions)
    shown = [segment.lower() for segment in segments(visiting)]
    assert all(name in shown for name in visiting.clickable())
    assert (visiting.product is None) == (visiting.kind in ("index", "results"))
