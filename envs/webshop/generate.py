"""The default catalogue: over a thousand products in WebShop's file formats, with instructions,
made from the lists in `words`.

It is the same in every process. `python -m envs.webshop.generate DIRECTORY` writes it as files.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import msgspec

from envs.webshop import files
from envs.webshop.files import Files
from envs.webshop.words import (
    BRANDS,
    BULLETS,
    DESCRIPTIONS,
    GROUPS,
    HUMAN_WORDINGS,
    PRODUCTS_OF_A_KIND,
    SYNTHETIC_WORDING,
    Group,
)
from protocol.files import atomic_write

HELD_OUT_OF_A_KIND = 4
"""Products of each kind whose goals are held out."""

HUMAN_INSTRUCTIONS = 3
"""Of each product."""

_HIDDEN = 0.1
"""Share of products whose title leaves out an attribute: it stands among the features."""


def generate() -> tuple[Files, frozenset[str]]:
    """(The catalogue, asins of the products whose goals are held out)."""
    rng = random.Random("webshop catalogue")
    numbers = rng.sample(
        range(1000, 10_000), sum(len(group.kinds) for group in GROUPS) * PRODUCTS_OF_A_KIND
    )
    products: list[dict[str, Any]] = []
    attributes: dict[str, Any] = {}
    human: dict[str, Any] = {}
    nouns: dict[str, list[str]] = {}
    held_out: set[str] = set()
    for group in GROUPS:
        for kind, price in group.kinds.items():
            asins = [f"B{numbers.pop()}" for _ in range(PRODUCTS_OF_A_KIND)]
            held_out |= set(asins[:HELD_OUT_OF_A_KIND])
            brands = rng.sample(BRANDS, PRODUCTS_OF_A_KIND)
            for asin, brand in zip(asins, brands, strict=True):
                has = rng.sample(group.attributes, 2)
                hidden = rng.random() < _HIDDEN
                titled = has[:1] if hidden else has
                nouns[asin] = _nouns(brand, titled, kind)
                product = _product(asin, brand, has, titled, kind, price, group, rng)
                products.append(product)
                plain = [_plain(attribute) for attribute in has]
                attributes[asin] = {
                    "attributes": plain,
                    "instruction": SYNTHETIC_WORDING.format(what=f"{', '.join(plain)} {kind}"),
                    "instruction_attributes": plain,
                }
                human[asin] = [
                    _instruction(plain, kind, product["customization_options"], rng)
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


NO_IMAGE = "https://example.invalid/no-image.jpg"
"""Stands for the picture that WebShop's own loader wants of every product; nothing shows it in text
mode."""


def write_files(made: Files, directory: Path) -> None:
    """Write a catalogue as `files.read_files` reads it, and WebShop's own loader."""
    directory.mkdir(parents=True, exist_ok=True)
    products = [msgspec.to_builtins(product) | {"images": [NO_IMAGE]} for product in made.products]
    parts = (products, made.attributes, made.human, made.nouns)
    names = (files.PRODUCT_FILES[0], files.ATTRIBUTE_FILES[0], files.HUMAN_FILE, files.NOUN_FILE)
    for name, part in zip(names, parts, strict=True):
        atomic_write(directory / name, msgspec.json.encode(part))


def _product(
    asin: str,
    brand: str,
    has: list[str],
    titled: list[str],
    kind: str,
    price: int,
    group: Group,
    rng: random.Random,
) -> dict[str, Any]:
    words = [_plain(attribute) for attribute in has]
    options = {
        name: rng.sample(values, rng.choice((2, 3)))
        for name, values in group.options.items()
        if rng.random() < 0.85
    }
    for name, values in options.items():
        values.sort(key=group.options[name].index)
    bullets = [
        rng.choice(BULLETS).format(attribute=word, Attribute=word.capitalize()) for word in words
    ]
    return {
        "asin": asin,
        "name": " ".join((brand, *(_plain(attribute) for attribute in titled), kind)).title(),
        "category": group.category,
        "query": kind,
        "product_category": " › ".join((*group.path, kind.title())),
        "full_description": rng.choice(DESCRIPTIONS).format(Brand=brand, kind=kind),
        # The one that a title leaves out comes first: only the first bullet is searched.
        "small_description": bullets[::-1],
        "customization_options": {
            name: [{"value": value} for value in values] for name, values in options.items()
        }
        or "",
        "pricing": _pricing(price, rng),
    }


def _pricing(usual: int, rng: random.Random) -> str:
    """Mostly one price; now and then a range, or none, as in WebShop's files."""
    price = int(usual * rng.uniform(0.5, 2.0)) + rng.choice((0.25, 0.5, 0.99))
    drawn = rng.random()
    if drawn < 0.01:
        return ""
    return f"${price} - ${price + 5}" if drawn < 0.03 else f"${price}"


def _instruction(
    attributes: list[str],
    kind: str,
    options: dict[str, list[dict[str, str]]] | str,
    rng: random.Random,
) -> dict[str, Any]:
    """As a person might ask: for one attribute or both, and for some of the options."""
    named = attributes if rng.random() < 0.6 else [rng.choice(attributes)]
    wanted: dict[str, str] = {}
    if isinstance(options, dict):
        wanted = {
            name: rng.choice(values)["value"]
            for name, values in options.items()
            if rng.random() < 0.8
        }
    said = "".join(
        f" in {value}" if name == "color" else f", {name} {value}" for name, value in wanted.items()
    )
    what = " ".join((*named, kind))
    return {
        "instruction": rng.choice(HUMAN_WORDINGS).format(what=what, options=said),
        "instruction_attributes": named,
        "instruction_options": list(wanted.values()),
    }


def _plain(attribute: str) -> str:
    return attribute.replace("*", "")


def _nouns(brand: str, titled: list[str], kind: str) -> list[str]:
    """What a tagger would find in the title; known here, since the lists mark nouns."""
    marked = [word[:-1] for attribute in titled for word in attribute.split() if word.endswith("*")]
    return [brand.lower(), *marked, *kind.split()]


def main() -> None:
    """Write the default catalogue as WebShop's files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("directory", type=Path, help="where to write them")
    write_files(generate()[0], parser.parse_args().directory)


if __name__ == "__main__":
    main()
