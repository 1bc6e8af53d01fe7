"""Questions and passages of the user's own, one JSON object a line.

Whatever is wrong with a file is one ValueError that says where.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from envs.base import Split
from envs.search.questions import Question

HELD_OUT_SHARE = 0.1


ANSWER_FIELDS = ("answers", "golden_answers", "answer")
"""Names of the field with the answers, as data sets call it: `golden_answers` in Search-R1 and
FlashRAG, `answer` in HotpotQA."""

_ID_FIELDS = ("id", "_id")


class Corpus(NamedTuple):
    """Passages, and the id of each as the file has it, or else its number, from 0."""

    ids: list[str | int]
    texts: list[str]


def read_corpus(path: str) -> Corpus:
    """Passages, from `{"contents": …}` as Search-R1 has them, or from `{"title": …, "text": …}`.

    `title` and `id` (or `_id`) are optional.
    """
    corpus = Corpus([], [])
    for where, row in _rows(path, "search.corpus"):
        corpus.ids.append(_passage_id(row, len(corpus.ids), where))
        if "contents" in row:
            corpus.texts.append(_text(row, "contents", where))
        elif "text" in row:
            title = _text(row, "title", where) if row.get("title") else ""
            text = _text(row, "text", where)
            corpus.texts.append(f'"{title}"\n{text}' if title else text)
        else:
            raise ValueError(f"{where}: there is neither contents nor text")
    return corpus


def _passage_id(row: dict[str, Any], number: int, where: str) -> str | int:
    field = next((field for field in _ID_FIELDS if row.get(field) is not None), None)
    if field is None:
        return str(number)
    value = row[field]
    if isinstance(value, str):
        return encodable(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: {field} is {_shown(row, field)}, not a text or a whole number")
    return value


def read_questions(path: str) -> dict[Split, tuple[Question, ...]]:
    """Questions from `{"question": …, "answers": […], "source": …}`; `answers` may be one text and
    go by another name of `ANSWER_FIELDS`, `source` is optional. Of a question that is there several
    times, all answers are right.

    One question in ten is held out, at least one: which ones depends on their texts alone, not on
    their order.
    """
    questions: dict[str, Question] = {}
    for where, row in _rows(path, "search.questions"):
        text = _text(row, "question", where)
        field = next((field for field in ANSWER_FIELDS if field in row), ANSWER_FIELDS[0])
        answers = row.get(field)
        answers = [answers] if isinstance(answers, str) else answers
        if (
            not isinstance(answers, list)
            or not answers
            or not all(isinstance(answer, str) and answer.strip() for answer in answers)
        ):
            raise ValueError(
                f"{where}: {field} is {_shown(row, field)}, not a text or a list of texts"
            )
        source = _text(row, "source", where) if "source" in row else Path(path).stem
        known = questions.get(text, Question(text, (), source))
        questions[text] = replace(
            known, answers=tuple(dict.fromkeys([*known.answers, *map(encodable, answers)]))
        )
    if len(questions) < 2:
        raise ValueError(
            f"search.questions: {path} has only one question; one is needed to train on, and one "
            "to evaluate"
        )
    ranked = sorted(questions, key=lambda text: blake2b(text.encode()).digest())
    held_out = set(ranked[: max(1, round(HELD_OUT_SHARE * len(ranked)))])
    return {
        "train": tuple(question for text, question in questions.items() if text not in held_out),
        "held_out": tuple(question for text, question in questions.items() if text in held_out),
    }


def _rows(path: str, setting: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, for messages; the object) of every line that is not empty.

    ValueError if there is none.
    """
    found = False
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{setting}: {path}, line {number}"
                found = True
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where} is not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{where} is not a JSON object")
                yield where, row
    except OSError as error:
        raise ValueError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    if not found:
        raise ValueError(f"{setting}: {path} is empty")


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {field} is {_shown(row, field)}, not a text")
    return encodable(value)


def encodable(text: str) -> str:
    """Without the halves of characters that JSON may hold: no prompt can be made of them."""
    return text.encode(errors="replace").decode()


def _shown(row: dict[str, Any], field: str) -> str:
    if field not in row:
        return "missing"
    text = json.dumps(row[field])
    return text if len(text) <= 60 else text[:60] + "…"
