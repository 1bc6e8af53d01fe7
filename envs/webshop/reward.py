"""The reward of a purchase: WebShop's, from 0 to 1, and its components."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.utils import default_process

from envs.webshop.goals import Goal
from envs.webshop.products import Product

_COLORS = """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown
    burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee
    cognac copper coral cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold
    granite grape graphite grass gray green grey heather indigo ivory ivy khaki lavender lemon
    leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom
    mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust
    sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger
    turquoise violet walnut wheat white wine yellow
"""
COLOR_WORDS = tuple(_COLORS.split())
"""WebShop's color words, in its order: the first one that a value contains stands for it."""

MATCH = 85
"""Two texts are the same if thefuzz rates them above this."""

_NOT_ASCII = dict.fromkeys(range(128, 256))


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one purchase.

    `total` is the raw reward; `attributes` and `options` count those wanted that were met.
    """

    total: float
    type: float
    attributes: int
    attributes_wanted: int
    options: int
    options_wanted: int
    price: bool
    title_overlap: float

    def components(self) -> dict[str, float]:
        """Shares from 0 to 1, as WebShop reports them; without `options` where none are wanted."""
        shares = {"type": self.type, "attributes": self.attributes / self.attributes_wanted}
        if self.options_wanted:
            shares["options"] = self.options / self.options_wanted
        return shares | {"price": float(self.price)}


def score_purchase(product: Product, chosen: Collection[str], goal: Goal) -> Score:
    """The reward of buying `product` with the option values `chosen`, for `goal`."""
    type_factor, overlap = _type_factor(product, goal.product)
    attributes = sum(_has_attribute(product, wanted) for wanted in goal.attributes)
    options = _matched_options(chosen, goal)
    price = product.price <= goal.price_cap
    wanted = len(goal.attributes) + len(goal.options) + 1
    return Score(
        total=type_factor * (attributes + options + price) / wanted,
        type=type_factor,
        attributes=attributes,
        attributes_wanted=len(goal.attributes),
        options=options,
        options_wanted=len(goal.options),
        price=price,
        title_overlap=overlap,
    )


def is_match(one: str, other: str) -> bool:
    """True if thefuzz's token_set_ratio, which is a whole number, is above `MATCH`."""
    return round(token_set_ratio(_preprocess(one), _preprocess(other))) > MATCH


def normalize_color(value: str) -> str:
    """The first of `COLOR_WORDS` that the value contains, be it within a word; else the value."""
    return next((color for color in COLOR_WORDS if color in value), value)


def _preprocess(text: str) -> str:
    return default_process(text.translate(_NOT_ASCII))


def _type_factor(product: Product, wanted: Product) -> tuple[float, float]:
    """(type factor, share of the wanted title's nouns that the product's title has)."""
    overlap = 0.2
    if wanted.nouns:
        shared = set(product.nouns) & set(wanted.nouns)
        overlap = len(shared) / len(wanted.nouns)
    if overlap == 0:
        return 0.0, overlap
    if overlap < 0.1:
        return 0.1, overlap
    similar = (
        product.query == wanted.query
        or len(set(product.path) & set(wanted.path)) >= 2
        or overlap > 0.2
    )
    if similar:
        return 1.0, overlap
    return 0.5, overlap


def _has_attribute(product: Product, wanted: str) -> bool:
    if any(is_match(attribute, wanted) for attribute in product.attributes):
        return True
    return any(wanted in text for text in product.searched)


def _matched_options(chosen: Collection[str], goal: Goal) -> int:
    chosen_values = [normalize_color(value) for value in chosen]
    if isinstance(goal.options, dict):
        # WebShop compares with the pair of name and value here, as Python prints it: a color only
        # if it is exactly one.
        wanted = [
            next((color for color in COLOR_WORDS if color in pair), str(pair))
            for pair in goal.options.items()
        ]
    else:
        wanted = [normalize_color(value) for value in goal.options]
    return sum(any(is_match(value, option) for value in chosen_values) for option in wanted)
