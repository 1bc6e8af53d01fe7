"""Questions and passages of the user's own, and what is said about files that are wrong."""

import json

import pytest

from envs.search.environment import Search
from envs.search.jsonl import read_corpus, read_questions
from envs.search.questions import Question


@pytest.fixture
def written(tmp_path):
    def write(*lines: object) -> str:
        path = tmp_path / "mine.jsonl"
        path.write_bytes(
            b"\n".join(
                line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
            )
        )
        return str(path)

    return write


GOOD = {"question": "Who?", "answers": ["me"]}


def test_passages_are_read_in_both_forms(written):
    path = written(
        {"id": "7", "contents": '"Paro"\nA town.'},
        b"",
        {"title": "Haa", "text": "A valley."},
        {"text": "Alone."},
    )
    assert read_corpus(path).texts == ['"Paro"\nA town.', '"Haa"\nA valley.', "Alone."]


def test_passages_keep_their_ids_and_are_numbered_where_they_have_none(written):
    rows = (
        {"id": "wiki-7", "text": "a"},
        {"text": "b"},
        {"_id": 5, "text": "c"},
        {"id": None, "_id": "d", "title": None, "text": "d"},
    )
    assert read_corpus(written(*rows)).ids == ["wiki-7", "1", 5, "d"]


def test_questions_are_read_with_and_without_a_source(written):
    path = written(
        {"id": 1, "question": "Who?", "answers": ["me", "I"], "source": "nq"},
        {"question": "Where?", "answers": "here"},
    )
    questions = read_questions(path)
    assert {*questions["train"], *questions["held_out"]} == {
        Question("Who?", ("me", "I"), "nq"),
        Question("Where?", ("here",), "mine"),
    }


@pytest.mark.parametrize("answers", [{"golden_answers": ["me", "I"]}, {"answers": ["me", "I"]}])
def test_answers_are_read_under_the_names_that_data_sets_give_them(written, answers):
    questions = read_questions(
        written({"question": "Who?", **answers}, {"question": "Where?", "answer": "here"})
    )
    assert {question.answers for split in questions.values() for question in split} == {
        ("me", "I"),
        ("here",),
    }


def test_half_a_character_is_replaced(written):
    assert read_corpus(written(b'{"contents": "Paro \\ud83d"}')).texts == ["Paro ?"]


def test_a_tenth_of_the_questions_is_held_out_whatever_their_order(written):
    rows = [{"question": f"Number {number}?", "answers": [str(number)]} for number in range(100)]
    forward = read_questions(written(*rows))
    backward = read_questions(written(*rows[::-1]))
    assert (len(forward["train"]), len(forward["held_out"])) == (90, 10)
    assert set(forward["held_out"]) == set(backward["held_out"])


def test_a_question_that_is_there_twice_has_the_answers_of_both_lines(written):
    rows = (
        {"question": "Where?", "answers": answers}
        for answers in (["here", "there"], "here", "yonder")
    )
    questions = read_questions(written(*rows, {"question": "Who?", "answers": "me"}))
    found = next(
        question for split in questions.values() for question in split if question.text == "Where?"
    )
    assert found.answers == ("here", "there", "yonder")


def test_a_repeated_question_is_in_one_split(written):
    questions = read_questions(written(GOOD, GOOD, {"question": "Where?", "answers": ["here"]}))
    assert sum(map(len, questions.values())) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is not JSON"),
        (b'"\xff"', "line 2 is not JSON"),
        ([1], "line 2 is not a JSON object"),
        ({"answers": ["me"]}, "line 2: question is missing, not a text"),
        ({"question": 5, "answers": ["me"]}, "line 2: question is 5, not a text"),
        ({"question": " ", "answers": ["me"]}, 'line 2: question is " ", not a text'),
        ({"question": "Who?"}, "line 2: answers is missing, not a text or a list of texts"),
        ({"question": "Who?", "answers": []}, r"line 2: answers is \[\], not a text or a list"),
        ({"question": "Who?", "answers": [3]}, r"line 2: answers is \[3\], not a text or a list"),
        (
            {"question": "Who?", "answers": ["me"], "source": None},
            "line 2: source is null, not a text",
        ),
    ],
)
def test_a_malformed_line_of_questions_is_named(written, line, message):
    with pytest.raises(ValueError, match=rf"env\.settings\.questions: .*mine\.jsonl, {message}"):
        read_questions(written(GOOD, line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "2"}, "line 2: there is neither contents nor text"),
        ({"contents": None}, "line 2: contents is null, not a text"),
        ({"id": [1], "text": "x"}, r"line 2: id is \[1\], not a text or a whole number"),
        ({"title": 1, "text": "x"}, "line 2: title is 1, not a text"),
        ({"text": ["x" * 100]}, r"line 2: text is .{61}, not a text"),
    ],
)
def test_a_malformed_line_of_a_corpus_is_named(written, line, message):
    with pytest.raises(ValueError, match=rf"env\.settings\.corpus: .*mine\.jsonl, {message}"):
        read_corpus(written({"contents": "x"}, line))


def test_an_empty_file_is_an_error(written):
    with pytest.raises(ValueError, match=r"env\.settings\.corpus: .* is empty"):
        read_corpus(written(b"", b" "))


def test_a_missing_file_is_an_error():
    with pytest.raises(
        ValueError, match=r"env\.settings\.questions: nowhere\.jsonl cannot be read: No such file"
    ):
        read_questions("nowhere.jsonl")


def test_a_single_question_cannot_be_split(written):
    with pytest.raises(ValueError, match="only one question"):
        read_questions(written(GOOD))


@pytest.mark.parametrize(("share", "held_out"), [(0.01, 1), (0.5, 4), (1.0, 8)])
def test_questions_are_held_out_in_the_share_that_is_asked_for(written, share, held_out):
    rows = ({"question": f"Which {n}?", "answers": ["this"]} for n in range(8))
    questions = read_questions(written(*rows), share)
    assert (len(questions["held_out"]), len(questions["train"])) == (held_out, 8 - held_out)


def test_a_single_question_can_be_held_out(written):
    assert len(read_questions(written(GOOD), 1.0)["held_out"]) == 1


def test_a_share_of_the_project_s_questions_is_refused():
    with pytest.raises(ValueError, match=r"^env\.settings\.held_out_share .*questions"):
        Search(held_out_share=1.0)


def test_the_environment_asks_the_user_s_questions_of_the_user_s_corpus(written, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"title": "Paro", "text": "Karma lives there."}')
    environment = Search(
        questions=written(GOOD, {"question": "Where?", "answers": ["there"], "source": "mine"}),
        corpus=str(corpus),
    )
    assert environment.size("train") == environment.size("held_out") == 1
    episode = environment.start("train", 0)
    assert (
        episode.step("<search>Karma</search>").observation.text
        == '<information>\nDoc 1: "Paro" Karma lives there.\n</information>'
    )
