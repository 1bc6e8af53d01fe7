"""Search QA as an `Environment`: a question, an index to search, an answer that is right or not."""

from __future__ import annotations

import functools
import random

from envs.base import Episode, Observation, ParsedAction, Split, StepResult
from envs.search.actions import format_tags, parse_tags, read_action
from envs.search.expert import SearchExpert
from envs.search.facts import load_passages
from envs.search.index import BM25Index
from envs.search.jsonl import HELD_OUT_SHARE, read_corpus, read_questions
from envs.search.prompt import NO_ACTION, build_prompt, format_passages
from envs.search.questions import Question, generate_questions
from envs.search.remote import RemoteRetriever, Retriever
from envs.search.scoring import exact_match
from envs.view import AgentView

REWARD = 1.0
MAX_TURNS = 4


class SearchEpisode:
    """One question being answered. See `envs.base.Episode`."""

    def __init__(self, question: Question, retriever: Retriever, topk: int, max_turns: int) -> None:
        self._question = question
        self._retriever = retriever
        self._topk = topk
        self._turns_left = max_turns
        self._done = False
        self._seen_passages: set[str] = set()
        self.task = question.text
        self.task_type = question.source
        self.observation = Observation("", ())
        self.scores = {"searches": 0.0}
        """The number of searches made so far."""

    def step(self, action: str) -> StepResult:
        """Search, which takes a turn, or answer, which ends the episode.

        Anything else is told to be neither, and takes a turn too.
        """
        if self._done:
            raise RuntimeError("the episode is over: start another one")
        kind, text = read_action(action)
        right = kind == "answer" and exact_match(text, self._question.answers)
        if kind == "search":
            passages = self._retriever.retrieve(text, self._topk)
            self._seen_passages.update(passages)
            self.scores["searches"] += 1
            self.observation = Observation(format_passages(passages), ())
        elif kind != "answer":
            self.observation = Observation(NO_ACTION, ())
        self._turns_left -= 1
        answered = kind == "answer"
        self._done = answered or self._turns_left == 0
        return StepResult(
            self.observation,
            REWARD * right,
            self._done,
            right,
            truncated=self._done and not answered,
        )

    def state_key(self) -> str:
        """All passages shown so far, in alphabetical order.

        The queries that found them make no difference to what is known, and neither does the order.
        """
        return "\n".join(sorted(self._seen_passages))


class Search:
    """Question answering with a search engine as an `Environment`.

    Settings: `questions`, a JSONL file (empty: those that come with the project), of which
    `held_out_share` is held out; `corpus`, a JSONL file of passages (empty: the project's); `url`,
    a server to ask instead of the index in this process; `topk`, passages a search returns;
    `max_turns`; `history`, past turns in the prompt.
    """

    name = "search"

    def __init__(
        self,
        questions: str = "",
        corpus: str = "",
        url: str = "",
        topk: int = 3,
        max_turns: int = 0,
        history: int = 4,
        held_out_share: float = HELD_OUT_SHARE,
    ) -> None:
        if url and corpus:
            raise ValueError(
                "env.settings.url and env.settings.corpus exclude each other: a server has its own "
                "passages"
            )
        if held_out_share != HELD_OUT_SHARE and not questions:
            raise ValueError(
                "env.settings.held_out_share divides the questions of a file; those that come with "
                "the project are divided: give env.settings.questions, or leave it out"
            )
        if topk < 1:
            raise ValueError(f"env.settings.topk: {topk} is less than 1")
        self.max_turns = max_turns or MAX_TURNS
        self._topk = topk
        self._history = history
        # Read and indexed before a fork, so that processes share it.
        self._questions = _load_questions(questions, held_out_share)
        self._retriever = _build_retriever(url, corpus)

    def size(self, split: Split) -> int:
        """Number of questions."""
        return len(self._questions[split])

    def question(self, split: Split, index: int) -> Question:
        """The question that `start` asks."""
        if not 0 <= index < self.size(split):
            raise IndexError(f"{split} has tasks 0 to {self.size(split) - 1}, not {index}")
        return self._questions[split][index]

    def start(self, split: Split, index: int, seed: int = 0) -> SearchEpisode:
        """Ask question `index` of `split`; nothing is drawn, so that `seed` makes no difference."""
        del seed
        return SearchEpisode(
            self.question(split, index), self._retriever, self._topk, self.max_turns
        )

    def view(self, episode: Episode) -> AgentView:
        """A fresh view, without a memory: results of searches stand in the past turns."""
        return AgentView(episode.task, episode.observation, history=self._history)

    def prompt(self, view: AgentView) -> str:
        """See `envs.search.prompt`."""
        return build_prompt(view)

    def parse(self, response: str, admissible: tuple[str, ...]) -> ParsedAction:
        """See `envs.search.actions`."""
        del admissible
        return parse_tags(response)

    def format_response(self, thought: str, action: str) -> str:
        """See `envs.search.actions`."""
        return format_tags(thought, action)

    def expert(self, episode: Episode, rng: random.Random) -> SearchExpert:
        """See `envs.search.expert`. ValueError for a question of the user's own."""
        return SearchExpert(episode.task, rng)


def _load_questions(path: str, held_out_share: float) -> dict[Split, tuple[Question, ...]]:
    if path:
        return read_questions(path, held_out_share)
    return generate_questions()


def _build_retriever(url: str, corpus: str) -> Retriever:
    if url:
        return RemoteRetriever(url)
    if corpus:
        return BM25Index(read_corpus(corpus).texts)
    return _index_own_passages()


@functools.cache
def _index_own_passages() -> BM25Index:
    """Index the passages that come with the project, once for all environments of a process."""
    return BM25Index(load_passages())
