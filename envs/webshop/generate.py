"""The default catalogue: over a thousand products in WebShop's file formats, with instructions.

It is made from the lists in `words`, and is the same in every process.
`python -m envs.webshop.generate DIRECTORY` writes it as files.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from envs.webshop import files
from envs.webshop.files import Files
from envs.webshop.words import Group, Words, load_words
from protocol.files import atomic_write

PRODUCTS_OF_A_KIND = 18
"""Products of each kind of thing."""
HELD_OUT_OF_A_KIND = 4
"""Products of each kind whose goals are held out."""
HUMAN_INSTRUCTIONS = 3
"""Instructions by people for each product."""

NO_IMAGE = "https://example.invalid/no-image.jpg"
"""Stands for the picture that WebShop's own loader wants of every product.

Nothing shows it in text mode.
"""

_HIDDEN = 0.1
"""Share of products whose title leaves out an attribute: it stands among the features."""


def generate() -> tuple[Files, frozenset[str]]:
    """(the catalogue, asins of the products whose goals are held out)."""
    words = load_words()
    rng = random.Random("webshop catalogue")
    kinds = sum(len(group.kinds) for group in words.groups)
    numbers = rng.sample(range(1000, 10_000), kinds * PRODUCTS_OF_A_KIND)
    products: list[dict[str, Any]] = []
    attributes: dict[str, Any] = {}
    human: dict[str, Any] = {}
    nouns: dict[str, list[str]] = {}
    held_out: set[str] = set()
    for group in words.groups:
        for kind in group.kinds:
            asins = [f"B{numbers.pop()}" for _ in range(PRODUCTS_OF_A_KIND)]
            held_out |= set(asins[:HELD_OUT_OF_A_KIND])
            brands = rng.sample(words.brands, PRODUCTS_OF_A_KIND)
            for asin, brand in zip(asins, brands, strict=True):
                draft = _Draft.draw(asin, brand, kind, group, rng)
                product = _draw_product(draft, words, rng)
                products.append(product)
                nouns[asin] = draft.nouns()
                plain = [_plain(attribute) for attribute in draft.attributes]
                what = f"{', '.join(plain)} {kind}"
                attributes[asin] = {
                    "attributes": plain,
                    "instruction": words.synthetic_wording.format(what=what),
                    "instruction_attributes": plain,
                }
                human[asin] = [
                    _draw_instruction(plain, kind, product["customization_options"], words, rng)
                    for _ in range(HUMAN_INSTRUCTIONS)
                ]
    rng.shuffle(products)
    raw = {
        "products": products,
        "attributes": attributes,
        "human": human,
        "nouns": nouns,
        "product_file": "the generated catalogue",
    }
    return msgspec.convert(raw, Files), frozenset(held_out)


def write_files(catalogue: Files, directory: Path) -> None:
    """Write a catalogue as `files.read_files` reads it, and WebShop's own loader."""
    directory.mkdir(parents=True, exist_ok=True)
    products = [
        msgspec.to_builtins(product) | {"images": [NO_IMAGE]} for product in catalogue.products
    ]
    contents = {
        files.PRODUCT_FILES[0]: products,
        files.ATTRIBUTE_FILES[0]: catalogue.attributes,
        files.HUMAN_FILE: catalogue.human,
        files.NOUN_FILE: catalogue.nouns,
    }
    for name, content in contents.items():
        atomic_write(directory / name, msgspec.json.encode(content))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A product in the making.

    `attributes` are as in `words.json`, `titled` those of them that the title names.
    """

    asin: str
    brand: str
    kind: str
    group: Group
    attributes: list[str]
    titled: list[str]

    @staticmethod
    def draw(asin: str, brand: str, kind: str, group: Group, rng: random.Random) -> _Draft:
        """A product with two attributes, both of which the title mostly names."""
        attributes = rng.sample(group.attributes, 2)
        titled = attributes
        if rng.random() < _HIDDEN:
            titled = attributes[:1]
        return _Draft(asin, brand, kind, group, attributes, titled)

    def title(self) -> str:
        """Brand, attributes and kind, capitalized."""
        attributes = [_plain(attribute) for attribute in self.titled]
        return " ".join((self.brand, *attributes, self.kind)).title()

    def nouns(self) -> list[str]:
        """The nouns of the title as a tagger would find them; known here, since words mark them."""
        title_words = [part for attribute in self.titled for part in attribute.split()]
        marked = [part[:-1] for part in title_words if part.endswith("*")]
        return [self.brand.lower(), *marked, *self.kind.split()]


def _draw_product(draft: _Draft, words: Words, rng: random.Random) -> dict[str, Any]:
    """A product as the file has it."""
    options = _draw_options(draft.group, words, rng)
    bullets = [
        rng.choice(words.bullets).format(attribute=attribute, Attribute=attribute.capitalize())
        for attribute in map(_plain, draft.attributes)
    ]
    description = rng.choice(words.descriptions).format(Brand=draft.brand, kind=draft.kind)
    return {
        "asin": draft.asin,
        "name": draft.title(),
        "category": draft.group.category,
        "query": draft.kind,
        "product_category": " › ".join((*draft.group.path, draft.kind.title())),
        "full_description": description,
        # The one that a title leaves out comes first: only the first bullet is searched.
        "small_description": bullets[::-1],
        "customization_options": options or "",
        "pricing": _draw_pricing(draft.group.kinds[draft.kind], rng),
    }


def _draw_options(
    group: Group, words: Words, rng: random.Random
) -> dict[str, list[dict[str, str]]]:
    """Most of the options of a group, each with two or three values, as the file has them."""
    options = {}
    for name in group.options:
        if rng.random() < 0.85:
            possible = words.values_of(group, name)
            values = rng.sample(possible, rng.choice((2, 3)))
            values.sort(key=possible.index)
            options[name] = [{"value": value} for value in values]
    return options


def _draw_pricing(usual: int, rng: random.Random) -> str:
    """Mostly one price; now and then a range, or none, as in WebShop's files."""
    price = int(usual * rng.uniform(0.5, 2.0)) + rng.choice((0.25, 0.5, 0.99))
    draw = rng.random()
    if draw < 0.01:
        return ""
    if draw < 0.03:
        return f"${price} - ${price + 5}"
    return f"${price}"


def _draw_instruction(
    attributes: list[str],
    kind: str,
    options: dict[str, list[dict[str, str]]] | str,
    words: Words,
    rng: random.Random,
) -> dict[str, Any]:
    """An instruction as a person might give it: one attribute or both, and some of the options."""
    named = attributes
    if rng.random() >= 0.6:
        named = [rng.choice(attributes)]
    wanted: dict[str, str] = {}
    phrases = ""
    if isinstance(options, dict):
        for name, values in options.items():
            if rng.random() < 0.8:
                wanted[name] = rng.choice(values)["value"]
                phrases += _option_phrase(name, wanted[name])
    what = " ".join((*named, kind))
    return {
        "instruction": rng.choice(words.human_wordings).format(what=what, options=phrases),
        "instruction_attributes": named,
        "instruction_options": list(wanted.values()),
    }


def _option_phrase(name: str, value: str) -> str:
    if name == "color":
        return f" in {value}"
    return f", {name} {value}"


def _plain(attribute: str) -> str:
    """An attribute without the stars that mark nouns."""
    return attribute.replace("*", "")


def main() -> None:
    """Write the default catalogue as WebShop's files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("directory", type=Path, help="where to write them")
    write_files(generate()[0], parser.parse_args().directory)


if __name__ == "__main__":
    main()
