"""What the expert thinks: the sub-goal and what comes next, in a few words. Several wordings for each situation.

Fields: {thing} a thing or its kind, {place} where it goes next or is, {here} where it is, {other} a further place or thing.
"""

from __future__ import annotations

import random

_WORDINGS: dict[str, tuple[str, ...]] = {
    # Searching for a {thing} (a kind).
    "search_first": (
        "First I need to find a {thing}. I will check {place}.",
        "I am looking for a {thing}. I start with {place}.",
        "I have to find a {thing}. It may be at {place}.",
    ),
    "search_next": (
        "No {thing} at {here}. I will check {place} next.",
        "The {thing} is not at {here}. I should check {place} next.",
        "I see no {thing} at {here}. Next I look at {place}.",
    ),
    "search_on": (
        "I still need a {thing}. I will check {place} next.",
        "I have not found a {thing} yet. Next I look at {place}.",
    ),
    "search_second": (
        "One {thing} is in place. I need another and check {place}.",
        "I still need a second {thing}. I will check {place}.",
        "One {thing} is done. I look for another at {place}.",
    ),
    "search_lamp": (
        "I have {other}. Now I need a {thing} and check {place}.",
        "With {other} in hand I look for a {thing} at {place}.",
    ),
    "search_open": (
        "{place} is closed. I open it to look for a {thing}.",
        "A {thing} may be inside. I open {place}.",
        "I cannot see into {place}. I open it to find a {thing}.",
    ),
    "search_here": (
        "{place} is right here. I examine it for a {thing}.",
        "I can see {place} from here. Is a {thing} there?",
    ),
    # A target {thing} (by name) is known to be at {place}.
    "take": (
        "{thing} is here. I take it from {place}.",
        "I found {thing} at {place}. I pick it up.",
        "I need {thing} and it is at {place}. I take it.",
    ),
    "return_for": (
        "I saw {thing} at {place}. I go there to take it.",
        "{thing} is at {place}. I go back for it.",
    ),
    "reopen_for": (
        "{thing} is in {place}, which is closed. I open it.",
        "I open {place} to get {thing}.",
    ),
    # The target is in hand and needs cleaning, heating or cooling ({other}) at {place}.
    "to_station": (
        "I have {thing}. Now I {other} it at {place}.",
        "I hold {thing}. I need to {other} it, so I go to {place}.",
        "Next I must {other} {thing}. I go to {place}.",
    ),
    "treat": (
        "I am at {place}. I {other} {thing} now.",
        "I can {other} {thing} with {place} now.",
        "{thing} is in my hand. I {other} it with {place}.",
    ),
    # The target in hand is ready to be put down at {place}.
    "to_goal": (
        "I have {thing}. I bring it to {place}.",
        "{thing} must go to {place}. I go there.",
        "Now I take {thing} to {place}.",
    ),
    "to_goal_treated": (
        "{thing} is {other} now. I bring it to {place}.",
        "I have the {other} {thing}. It goes to {place}.",
    ),
    "open_goal": (
        "{place} is closed. I open it to put {thing} in.",
        "I must open {place} before I can put {thing} in.",
    ),
    "put": (
        "I am at {place}. I put {thing} here.",
        "This is {place}. I move {thing} there to finish.",
        "{thing} belongs at {place}. I put it down.",
    ),
    "put_first": (
        "I am at {place}. I put {thing} here, then find another.",
        "{thing} is the first one. I put it at {place}.",
    ),
    # The target is in hand, and the lamp {other} is known to be at {place}.
    "to_lamp": (
        "I have {thing}. {other} is at {place}, so I go there.",
        "I saw {other} at {place}. I bring {thing} there.",
    ),
    "use_lamp": (
        "I have {thing} and {other} is here. I use it.",
        "{other} is here. I turn it on to look at {thing}.",
    ),
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
    "lost": (
        "I have looked everywhere. I check {place} again.",
        "I found no {thing} so far. I go back to {place}.",
    ),
}


def word(situation: str, rng: random.Random, **fields: str) -> str:
    """One wording of a situation, with its first letter capitalised."""
    text = rng.choice(_WORDINGS[situation]).format(**fields)
    return text[0].upper() + text[1:]
