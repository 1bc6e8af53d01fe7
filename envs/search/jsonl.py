"""Questions and passages of the user's own, one JSON object a line.

Anything wrong with a file is one ValueError that says where.
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
"""Share of a file's questions that is held out, unless another is asked for."""

ANSWER_FIELDS = ("answers", "golden_answers", "answer")
"""Names that data sets give the field with the answers.

It is `golden_answers` in Search-R1 and FlashRAG, `answer` in HotpotQA.
"""

_ID_FIELDS = ("id", "_id")


class Corpus(NamedTuple):
    """Passages, and the id of each as the file has it, or else its number, from 0."""

    ids: list[str | int]
    texts: list[str]


def read_corpus(path: str) -> Corpus:
    """Read passages from `{"contents": …}`, as in Search-R1, or `{"title": …, "text": …}`.

    `title` and `id` (or `_id`) are optional.
    """
    corpus = Corpus([], [])
    for where, row in read_rows(path, "env.settings.corpus"):
        corpus.ids.append(_passage_id(row, len(corpus.ids), where))
        corpus.texts.append(_passage_text(row, where))
    return corpus


def _passage_text(row: dict[str, Any], where: str) -> str:
    if "contents" in row:
        return _text(row, "contents", where)
    if "text" not in row:
        raise ValueError(f"{where}: there is neither contents nor text")
    if not row.get("title"):
        return _text(row, "text", where)
    title = _text(row, "title", where)
    return f'"{title}"\n{_text(row, "text", where)}'


def _passage_id(row: dict[str, Any], number: int, where: str) -> str | int:
    field = next((field for field in _ID_FIELDS if row.get(field) is not None), None)
    if field is None:
        return str(number)
    value = row[field]
    if isinstance(value, str):
        return replace_surrogates(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"{where}: {field} is {_describe_field(row, field)}, not a text or a whole number"
        )
    return value


def read_questions(
    path: str, held_out_share: float = HELD_OUT_SHARE
) -> dict[Split, tuple[Question, ...]]:
    """Read questions from `{"question": …, "answers": […], "source": …}`, and split them.

    `answers` may be one text and go by another name of `ANSWER_FIELDS`; `source` is optional. Of a
    question that is there several times, all answers are right. A share of the questions is held
    out, at least one: which ones depends on their texts alone, not on their order.
    """
    questions: dict[str, Question] = {}
    for where, row in read_rows(path, "env.settings.questions"):
        text = _text(row, "question", where)
        answers = _answers(row, where)
        source = Path(path).stem
        if "source" in row:
            source = _text(row, "source", where)
        known = questions.get(text, Question(text, (), source))
        all_answers = dict.fromkeys([*known.answers, *answers])
        questions[text] = replace(known, answers=tuple(all_answers))
    if len(questions) < 2 and held_out_share < 1:
        raise ValueError(
            f"env.settings.questions: {path} has only one question; one is needed to train on, and "
            "one "
            "to evaluate"
        )
    ranked = sorted(questions, key=lambda text: blake2b(text.encode()).digest())
    held_out = set(ranked[: max(1, round(held_out_share * len(ranked)))])
    return {
        "train": tuple(question for text, question in questions.items() if text not in held_out),
        "held_out": tuple(question for text, question in questions.items() if text in held_out),
    }


def _answers(row: dict[str, Any], where: str) -> list[str]:
    field = next((field for field in ANSWER_FIELDS if field in row), ANSWER_FIELDS[0])
    answers = row.get(field)
    if isinstance(answers, str):
        answers = [answers]
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, str) and answer.strip() for answer in answers)
    ):
        raise ValueError(
            f"{where}: {field} is {_describe_field(row, field)}, not a text or a list of texts"
        )
    return [replace_surrogates(answer) for answer in answers]


def read_rows(path: str, setting: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, for messages; the object) of every line that is not empty.

    ValueError if there is none.
    """
    is_empty = True
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{setting}: {path}, line {number}"
                is_empty = False
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where} is not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{where} is not a JSON object")
                yield where, row
    except OSError as error:
        raise ValueError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    if is_empty:
        raise ValueError(f"{setting}: {path} is empty")


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {field} is {_describe_field(row, field)}, not a text")
    return replace_surrogates(value)


def replace_surrogates(text: str) -> str:
    """The text without halves of characters (lone surrogates).

    JSON may hold them, and no prompt can be made of them.
    """
    return text.encode(errors="replace").decode()


def _describe_field(row: dict[str, Any], field: str) -> str:
    """The value of a field for a message, cut if it is long."""
    if field not in row:
        return "missing"
    text = json.dumps(row[field])
    if len(text) > 60:
        return text[:60] + "…"
    return text
