"""A small shop for tests: products and goals by hand, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envs.webshop.goals import Goal
from envs.webshop.products import Product


def product(asin: str = "B1", title: str = "Acme Cotton Shirt", **fields: Any) -> Product:
    """A product with harmless defaults."""
    defaults: dict[str, Any] = {
        "category": "fashion",
        "query": "shirt",
        "path": ("Clothing", "Tops", "Shirts"),
        "description": "",
        "bullets": (),
        "price": 20.0,
        "price_text": "$20.0",
        "options": {},
        "attributes": ("cotton",),
        "nouns": ("acme", "cotton", "shirt"),
    }
    return Product(asin=asin, title=title, **(defaults | fields))


def goal(wanted: Product | None = None, **fields: Any) -> Goal:
    """A goal with harmless defaults."""
    defaults: dict[str, Any] = {
        "kind": "human",
        "instruction": "i need a shirt",
        "attributes": ("cotton",),
        "options": (),
        "price_cap": 30.0,
    }
    return Goal(product=wanted or product(), **(defaults | fields))


def raw_product(asin: str = "B000000001", **fields: Any) -> dict[str, Any]:
    """A product as WebShop's file has it."""
    defaults = {
        "name": "Acme Cotton Shirt",
        "asin": asin,
        "category": "fashion",
        "query": " Shirt ",
        "product_category": "Clothing › Tops › Shirts",
        "full_description": "A shirt.",
        "small_description": ["Soft.", "Warm."],
        "pricing": "$19.99",
        "images": ["a.jpg"],
        "customization_options": {
            "Color": [{"value": " Navy/White ", "image": None}, {"value": "Red", "image": "b.jpg"}],
            "Size": None,
        },
    }
    return defaults | fields


def write_shop(
    directory: Path, products: Any = None, attributes: Any = None, human: Any = None
) -> Path:
    """WebShop's three files in a directory; what is not given is harmless."""
    products = [raw_product(f"B00000000{i}") for i in range(10)] if products is None else products
    asins = (
        [entry["asin"] for entry in products if isinstance(entry, dict) and "asin" in entry]
        if isinstance(products, list)
        else []
    )
    if attributes is None:
        attributes = {
            asin: {
                "attributes": ["cotton"],
                "instruction": f"Buy {asin}",
                "instruction_attributes": ["cotton"],
            }
            for asin in asins
        }
    if human is None:
        human = {
            asin: [
                {
                    "instruction": f"i need {asin}.",
                    "instruction_attributes": ["cotton"],
                    "instruction_options": ["red"],
                }
            ]
            for asin in asins
        }
    for name, content in (
        ("items_shuffle_1000.json", products),
        ("items_ins_v2_1000.json", attributes),
        ("items_human_ins.json", human),
    ):
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory
