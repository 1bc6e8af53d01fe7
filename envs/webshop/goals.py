"""Goals of shoppers: from people's instructions and synthetic ones, and their division."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from envs.base import Split
from envs.webshop.files import Files
from envs.webshop.products import Product

GoalKind = Literal["human", "synthetic"]
GOAL_KINDS: tuple[GoalKind, ...] = ("human", "synthetic")

NO_CAP = 1_000_000.0
SHUFFLE_SEED = 233
"""WebShop's own, so that the goals of its real files have the numbers that they have there."""

TEST = 500
EVAL = 1000
"""Sizes of WebShop's test set, its first goals, and of its evaluation set, the next ones.

The rest is for training.
"""


@dataclass(frozen=True, slots=True)
class Goal:
    """Something to buy.

    `options`: values as people wrote them, or {name: value} of a synthetic goal. `price_cap`: the
    most it may cost, in dollars.
    """

    kind: GoalKind
    product: Product
    """One that was meant; others may do as well."""
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] | dict[str, str]
    price_cap: float

    def key(self) -> tuple:
        """A value that is equal for goals that ask for the same."""
        options: tuple = tuple(self.options)
        if isinstance(self.options, dict):
            options = tuple(self.options.items())
        return (
            self.product.asin,
            self.instruction.partition(", and price lower than")[0],
            self.attributes,
            options,
        )


def build_human_goals(products: Sequence[Product], files: Files) -> list[Goal]:
    """A goal for each instruction that a person gave and that names attributes."""
    goals = []
    for product in products:
        for number, raw in enumerate(files.human.get(product.asin, ())):
            if not raw.instruction_attributes:
                continue
            cap, cap_phrase = _draw_price_cap(product, f"human {number}")
            options = raw.instruction_options
            goals.append(
                Goal(
                    "human",
                    product,
                    raw.instruction.strip(".") + cap_phrase,
                    tuple(raw.instruction_attributes),
                    dict(options) if isinstance(options, dict) else tuple(options),
                    cap,
                )
            )
    return goals


def build_synthetic_goals(products: Sequence[Product], files: Files) -> list[Goal]:
    """A goal for each combination of option values of a product with an instruction.

    Goals of one product share their price cap. A product whose instruction names no attributes is
    left out.
    """
    goals = []
    for product in products:
        entry = files.attributes.get(product.asin)
        if entry is None or entry.instruction is None or not entry.instruction_attributes:
            continue
        cap, cap_phrase = _draw_price_cap(product, "synthetic")
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            options = dict(zip(names, values, strict=True))
            text = entry.instruction
            if options:
                phrases = (f"{name}: {value}" for name, value in options.items())
                text += f" with {', and '.join(phrases)}"
            attributes = tuple(entry.instruction_attributes)
            goals.append(Goal("synthetic", product, text + cap_phrase, attributes, options, cap))
    return goals


def split_goals(goals: list[Goal], held_out: frozenset[str] | None) -> dict[Split, list[Goal]]:
    """Goals of one kind, shuffled and divided.

    With `held_out`, they are divided by product: those whose asin is in it are held out. Else they
    are divided as WebShop does it: the test set is held out, the evaluation set is used for nothing
    (so that figures from elsewhere stay comparable), the rest is trained on. Of fewer than 3,000
    goals, a sixth is the test set and a third the evaluation set, so that half are trained on. A
    goal that asks for the same as one held out is not trained on.
    """
    goals = list(goals)
    random.Random(SHUFFLE_SEED).shuffle(goals)
    if held_out is not None:
        return {
            "train": [goal for goal in goals if goal.product.asin not in held_out],
            "held_out": [goal for goal in goals if goal.product.asin in held_out],
        }
    test_size = min(TEST, -(-len(goals) // 6))
    test_goals = goals[:test_size]
    test_keys = {goal.key() for goal in test_goals}
    rest = goals[test_size + min(EVAL, len(goals) // 3) :]
    train_goals = [goal for goal in rest if goal.key() not in test_keys]
    return {"train": train_goals, "held_out": test_goals}


def _draw_price_cap(product: Product, which: str) -> tuple[float, str]:
    """(Cap in dollars, how the instruction says it).

    It is the larger of two of the next four multiples of 10 above the price, below 1,000.
    """
    above = [10.0 * step for step in range(1, 100) if 10.0 * step > product.price][:4]
    if len(above) < 2:
        return NO_CAP, ""
    cap = max(random.Random(f"webshop cap {product.asin} {which}").sample(above, 2))
    return cap, f", and price lower than {cap:.2f} dollars"
