"""WebShop's data files, as their users have them.

Anything that does not fit is one error that names the file and the field.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

PRODUCT_FILES = ("items_shuffle_1000.json", "items_shuffle.json")
ATTRIBUTE_FILES = ("items_ins_v2_1000.json", "items_ins_v2.json")
HUMAN_FILE = "items_human_ins.json"
NOUN_FILE = "title_nouns.json"
"""Not one of WebShop's: see `envs.webshop.nouns`."""

_T = TypeVar("_T")


class OptionValue(msgspec.Struct):
    """One value of an option; the file has images and links besides."""

    value: str


class RawProduct(msgspec.Struct):
    """A product of items_shuffle*.json; fields that are not needed are skipped."""

    name: str
    asin: str
    category: str
    query: str
    product_category: str
    full_description: str
    small_description: list[str] | str
    customization_options: dict[str, list[OptionValue] | None] | str | None = ""
    pricing: str | None = ""


class RawAttributes(msgspec.Struct):
    """A product's entry of items_ins_v2*.json: what it has, and the synthetic instruction."""

    attributes: list[str] | None = None
    instruction: str | None = None
    instruction_attributes: list[str] | None = None


class RawInstruction(msgspec.Struct):
    """A person's instruction of items_human_ins.json."""

    instruction: str
    instruction_attributes: list[str]
    instruction_options: list[str] | dict[str, str]


class Files(msgspec.Struct, frozen=True):
    """The contents of all files.

    `nouns` (asin -> nouns of the title) is None where there is no such table.
    """

    products: list[RawProduct]
    attributes: dict[str, RawAttributes]
    human: dict[str, list[RawInstruction]]
    nouns: dict[str, list[str]] | None
    product_file: str
    """For errors."""


def read_files(directory: Path) -> Files:
    """The files of a directory; of those that come in two sizes the small one, if it is there.

    ValueError if anything is wrong.
    """
    if not directory.is_dir():
        raise ValueError(f"env.settings.data (or WEBSHOP_DATA): {directory} is not a directory")
    product_file = _find_file(directory, PRODUCT_FILES)
    products = _decode(product_file, list[RawProduct])
    if not products:
        raise ValueError(f"{product_file}: the list of products is empty")
    attribute_file = _find_file(directory, ATTRIBUTE_FILES)
    human_file = _find_file(directory, (HUMAN_FILE,))
    nouns = None
    if (directory / NOUN_FILE).exists():
        nouns = _decode(directory / NOUN_FILE, dict[str, list[str]])
    return Files(
        products=products,
        attributes=_decode(attribute_file, dict[str, RawAttributes]),
        human=_decode(human_file, dict[str, list[RawInstruction]]),
        nouns=nouns,
        product_file=str(product_file),
    )


def parse_prices(pricing: str | None) -> tuple[float, ...]:
    """The one or two prices of "$877.80" or "$10.99 - $25.00"; 100 if there is none.

    ValueError if it cannot be read.
    """
    if not pricing:
        return (100.0,)
    amounts = [re.sub(r"[^\d.]", "", part) for part in pricing.split("$")[1:]]
    try:
        if not amounts:
            raise ValueError
        return tuple(float(Decimal(amount)) for amount in amounts)[:2]
    except (ArithmeticError, ValueError):
        raise ValueError(
            f"{pricing!r} is no price; it should look like $877.80 or $10.99 - $25.00"
        ) from None


def _find_file(directory: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that the directory has. ValueError if it has none."""
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise ValueError(
        f"env.settings.data (or WEBSHOP_DATA): {directory} has no {' or '.join(names)}"
    )


def _decode(file: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise ValueError(f"{file}: {path.rstrip('`') or 'the whole file'}: {message}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
