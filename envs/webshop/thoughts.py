"""The expert's thoughts: what it sees and what comes next, in several wordings.

A thought begins with the thing, as the line of the prompt does that ends in its action: the action
is then one look away, and the words are the same tokens.

Fields: {what} a query or a missing word, {title} and {price} of an item, {value} of an option.
"""

from __future__ import annotations

import random

_WORDINGS: dict[str, tuple[str, ...]] = {
    "search": (
        "I search for what is asked.",
        "A search comes first.",
        "I look for it by its words.",
    ),
    "search_less": ("Nothing was found. I search with fewer words.", "I try a shorter query."),
    "search_again": ("This is not my search. I search again.", "I search for the right thing."),
    "open": (
        "{title}, {price} fits. I open it.",
        "{title}, {price} looks right.",
        "{title}, {price} has it all. I look at it.",
    ),
    "open_maybe": (
        "{title}, {price} comes close. I open it.",
        "{title}, {price} may do. I try it.",
    ),
    "next_page": ("Nothing here fits. I look further.", "None of these. I turn the page."),
    "first_page": ("I go back to the first results.", "The first page was better."),
    "features": ("Is it {what}? I read the features.", "I check whether it is {what}."),
    "features_done": ("I have read it. I go back to the item.", "That is all. Back to the item."),
    "leave": ("It is not {what}. I go back.", "There is no {what}. I try another one."),
    "too_dear": ("It costs too much. I go back.", "The price is too high. I try another one."),
    "choose": ("I choose {value}.", "It should be {value}.", "{value} is asked for."),
    "buy_chosen": ("All is chosen. I buy it.", "It is as asked. I buy it."),
    "buy_plain": ("Nothing is to be chosen. I buy it.", "It fits as it is. I buy it."),
    # Wasting a turn.
    "wait_read": ("I read about it first.", "Let me see what it says."),
    "wait_back": ("I have seen enough of this.", "Back to where I was."),
    "wait_turn": ("I look at other results too.", "Let me see what else there is."),
    "wait_search": ("I search for something like it first.", "Let me try fewer words first."),
}


def word_thought(situation: str, rng: random.Random, **fields: str) -> str:
    """One wording of a situation."""
    return rng.choice(_WORDINGS[situation]).format(**fields)
