"""The expert's thoughts: the sub-goal and the next step, in several wordings.

A thought names the thing first, and says the rest afterwards: a model that thinks like that has the
thing in its own words when it must decide, one look away from where it is listed.

Fields: {thing} a thing or its kind, {place} where it goes next or is, {here} where it is, {other} a
further place or thing.
"""

from __future__ import annotations

import random

_WORDINGS: dict[str, tuple[str, ...]] = {
    # Searching for a {thing} (a kind).
    "search_first": (
        "The {thing} may be at {place}. I look there first.",
        "For the {thing} I start with {place}.",
    ),
    "search_next": (
        "The {thing} is not at {here}. I check {place} next.",
        "For the {thing} I looked at {here} in vain. Next is {place}.",
    ),
    "search_on": (
        "The {thing} is still missing. I check {place} next.",
        "For the {thing} I go on with {place}.",
    ),
    "search_second": (
        "The {thing} in place is one of two. For another I check {place}.",
        "For the {thing} that is still missing I check {place}.",
    ),
    "search_lamp": (
        "The {thing} is what I need for {other}. I check {place}.",
        "For the {thing} to light {other} I check {place}.",
    ),
    "search_open": (
        "The {thing} may be in {place}, which is closed. I open it.",
        "For the {thing} I open {place}, which is closed.",
    ),
    "search_here": (
        "The {thing} may be in {place}, right here. I examine it.",
        "For the {thing} I examine {place}, right here.",
    ),
    # A target {thing} (by name) is known to be at {place}.
    "take": (
        "The {thing} is here. I take it from {place}.",
        "For the {thing} I came to the right place. I take it from {place}.",
    ),
    "return_for": (
        "The {thing} is at {place}. I go there to take it.",
        "For the {thing} I go back to {place}.",
    ),
    "reopen_for": (
        "The {thing} is in {place}, which is closed. I open it.",
        "For the {thing} I open {place} again.",
    ),
    # The target is in hand and needs cleaning, heating or cooling ({other}) at {place}.
    "to_station": (
        "The {thing} is in my hand. I {other} it at {place}.",
        "For the {thing} that I hold I go to {place}, to {other} it.",
    ),
    "treat": (
        "The {thing} is in my hand at {place}. I {other} it now.",
        "For the {thing} in my hand I use {place}, to {other} it.",
    ),
    # The target in hand is ready to be put down at {place}.
    "to_goal": (
        "The {thing} is in my hand. I bring it to {place}.",
        "For the {thing} that I hold I go to {place}.",
    ),
    "to_goal_treated": (
        "The {thing} is {other} now. I bring it to {place}.",
        "For the {other} {thing} I go to {place}.",
    ),
    "open_goal": (
        "The {thing} goes into {place}, which is closed. I open it.",
        "For the {thing} to go in I open {place}.",
    ),
    "put": (
        "The {thing} is where it belongs. I put it at {place}.",
        "For the {thing} this is the place. I put it at {place}.",
    ),
    "put_first": (
        "The {thing} is the first of two. I put it at {place}.",
        "For the {thing}, the first of two, this is the place: {place}.",
    ),
    # The target is in hand, and the lamp {other} is known to be at {place}.
    "to_lamp": (
        "The {thing} is in my hand. I bring it to {other} at {place}.",
        "For the {thing} I need {other}, which is at {place}.",
    ),
    "use_lamp": (
        "The {thing} is in my hand and {other} is here. I use it.",
        "For the {thing} I turn on {other}, which is here.",
    ),
    # Wasting a turn.
    "look": ("I look around first.", "I want to see where I am."),
    "inventory": ("I check what I carry.", "I look at what I have."),
    "examine": ("I look closer at {thing}.", "I examine {thing} first."),
    # Recovering from steps that were not the expert's own.
    "drop": (
        "I do not need {thing}. I put it at {place}.",
        "{thing} is the wrong thing. I leave it at {place}.",
    ),
    "drop_at": (
        "I do not need {thing}. I go to {place} to leave it.",
        "{thing} is the wrong thing. I bring it to {place}.",
    ),
    "open_to_drop": ("I open {place} to leave {thing} there.",),
    "no_place": (
        "The {thing} fits nowhere that I know. I try {place}.",
        "For the {thing} I find no place. I try {place}.",
    ),
    "lost": (
        "I have looked everywhere. I check {place} again.",
        "I found no {thing} so far. I go back to {place}.",
    ),
}


def word_thought(situation: str, rng: random.Random, **fields: str) -> str:
    """One wording of a situation, with its first letter capitalized."""
    text = rng.choice(_WORDINGS[situation]).format(**fields)
    return text[0].upper() + text[1:]
