"""What a purchase is worth: WebShop's reward, 0 to 1, and what it is made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.utils import default_process

from envs.webshop.catalogue import Product
from envs.webshop.goals import Goal

_COLOUR_WORDS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze "
    "brown burgundy camel camo caramel champagne "
    "charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream "
    "crystal dark denim eggplant elephant "
    "espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory ivy "
    "khaki lavender lemon leopard light "
    "lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard "
    "natural navy nude olive orange peach "
    "pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver skull "
    "slate steel stone stonewash sunflower "
    "tan taupe teal tiger turquoise violet walnut wheat white wine yellow"
)
COLOURS = tuple(_COLOUR_WORDS.split())
"""WebShop's colour words, in its order: the first one that a value contains stands for it."""

MATCH = 85
"""Two texts are the same if thefuzz rates them above this."""

_NOT_ASCII = dict.fromkeys(range(128, 256))


@dataclass(frozen=True, slots=True)
class Score:
    """`total` is the raw reward. Attributes and options: how many of those wanted were met."""

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


def score(product: Product, chosen: Collection[str], goal: Goal) -> Score:
    """The reward of buying `product` with the option values `chosen`, for `goal`."""
    kind, overlap = _type(product, goal.product)
    attributes = sum(_has_attribute(product, wanted) for wanted in goal.attributes)
    options = _matched_options(chosen, goal)
    price = product.price <= goal.price_cap
    wanted = len(goal.attributes) + len(goal.options) + 1
    total = kind * (attributes + options + price) / wanted
    return Score(
        total, kind, attributes, len(goal.attributes), options, len(goal.options), price, overlap
    )


def alike(one: str, other: str) -> bool:
    """Whether thefuzz's token_set_ratio, which is a whole number, is above `MATCH`."""
    return round(token_set_ratio(_processed(one), _processed(other))) > MATCH


def normal_colour(value: str) -> str:
    """The first of `COLOURS` that is contained in the value, be it within a word; the value if
    there is none."""
    return next((colour for colour in COLOURS if colour in value), value)


def _processed(text: str) -> str:
    return default_process(text.translate(_NOT_ASCII))


def _type(product: Product, wanted: Product) -> tuple[float, float]:
    """(Type factor, share of the wanted title's nouns that the product's title has)."""
    shared = set(product.nouns) & set(wanted.nouns)
    overlap = len(shared) / len(wanted.nouns) if wanted.nouns else 0.2
    if overlap == 0:
        return 0.0, overlap
    if overlap < 0.1:
        return 0.1, overlap
    similar = (
        product.query == wanted.query
        or len(set(product.path) & set(wanted.path)) >= 2
        or overlap > 0.2
    )
    return (1.0 if similar else 0.5), overlap


def _has_attribute(product: Product, wanted: str) -> bool:
    return any(alike(attribute, wanted) for attribute in product.attributes) or any(
        wanted in text for text in product.searched
    )


def _matched_options(chosen: Collection[str], goal: Goal) -> int:
    have = [normal_colour(value) for value in chosen]
    if isinstance(goal.options, dict):
        # WebShop compares with the pair of name and value here, as Python prints it: a colour only
        # if it is exactly one.
        wanted = [
            next((colour for colour in COLOURS if colour in pair), str(pair))
            for pair in goal.options.items()
        ]
    else:
        wanted = [normal_colour(value) for value in goal.options]
    return sum(any(alike(value, option) for value in have) for option in wanted)
