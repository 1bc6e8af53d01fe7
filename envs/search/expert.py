"""A demonstrator that knows how questions are built, and nothing else.

It reads every name and value in the passages that it was shown.

It follows the question's chain of facts as far as the passages in the view lead, and searches for
the next fact. So it can be asked at any turn, and goes on after somebody else's searches.
"""

from __future__ import annotations

import random
import re
from functools import cache

from envs.search.actions import format_action
from envs.search.relations import ASKED, CLUES, WORDINGS, Step, last_step
from envs.view import AgentView

_DOCUMENT = re.compile(r"Doc \d+: (.*)")

# True of every country, asked by no question.
_NEEDLESS = ("climate", "terrain", "exports", "religions", "coastline", "industries")

# The sub-goal in a few words. {known}: what is known so far; {finds}: what comes next;
# {answer}: the answer.
_WORDINGS = {
    "first": (
        "First I need the {finds}.",
        "I look up which {finds} that is.",
        "Which {finds} is that? I search.",
    ),
    "next": (
        "It is {known}. Now I need the {finds}.",
        "That is {known}. Next is the {finds}.",
        "So it is {known}. I look for the {finds}.",
    ),
    "again": ("That was not it. I try other words.", "I do not see it. I search with other words."),
    "answer": (
        "The {finds} of {known} is {answer}.",
        "It says that the {finds} of {known} is {answer}.",
    ),
    "give_up": ("I cannot find it. I guess.", "I have looked for it in vain. I guess."),
    "needless": ("I want to know more first.", "I look around a little."),
}


@cache
def _question_forms() -> list[tuple[re.Pattern[str], tuple[Step, ...]]]:
    """Every form of question, with the steps to its answer.

    The more specific forms come first: `the airport {x}` before `{x}`.
    """
    forms = []
    for clue in sorted(CLUES, key=lambda clue: -len(clue.text)):
        for relation in ASKED:
            for wording in WORDINGS:
                question = wording.format(label=relation.label, place=clue.text)
                before, after = question.split("{x}")
                pattern = re.compile(f"{re.escape(before)}(.+){re.escape(after)}")
                forms.append((pattern, (*clue.steps, last_step(relation))))
    return forms


def _read_question(text: str) -> tuple[str, tuple[Step, ...]]:
    """(what the question names, the steps from there to its answer). ValueError for others."""
    for pattern, steps in _question_forms():
        match = pattern.fullmatch(text)
        if match is not None:
            return match[1], steps
    raise ValueError(
        f"the expert does not understand the question {text!r}: it knows those that come with the "
        "project, not env.settings.questions"
    )


class SearchExpert:
    """Answers one question. Each turn is decided anew from the view; only the wording is random."""

    def __init__(self, task: str, rng: random.Random) -> None:
        self._start, self._steps = _read_question(task)
        self._rng = rng

    def act(self, view: AgentView) -> tuple[str, str]:
        """(thought, action): the next search, or the answer."""
        chain = self._follow_chain(view)
        if len(chain) > len(self._steps):
            thought = self._say("answer", chain[-2], self._steps[-1], chain[-1])
            return thought, format_action("answer", chain[-1])
        step = self._steps[len(chain) - 1]
        known = chain[-1]
        past_actions = {action for _, _, action in view.past}
        searches = [format_action("search", query) for query in _queries(step, known)]
        untried = [search for search in searches if search not in past_actions]
        if not untried:
            return self._say("give_up", known, step), format_action("answer", known)
        situation = "next"
        if len(untried) < len(searches):
            situation = "again"
        elif len(chain) == 1:
            situation = "first"
        return self._say(situation, known, step), untried[0]

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """A search that does not help.

        It is one for what is asked, without saying of what, or for a fact that nobody asked for.
        """
        chain = self._follow_chain(view)
        query = self._steps[-1].relation.label
        if len(chain) >= len(self._steps):
            query = f"{self._rng.choice(_NEEDLESS)} of {chain[len(self._steps) - 1]}"
        return self._say("needless", chain[-1], self._steps[-1]), format_action("search", query)

    def _follow_chain(self, view: AgentView) -> list[str]:
        """The thing that the question names, and the facts to which the passages lead from it."""
        texts = [text for _, text, _ in view.past] + [view.observation.text]
        passages = [line for text in texts for line in _DOCUMENT.findall(text)]
        chain = [self._start]
        for step in self._steps:
            values = (step.read(passage, chain[-1]) for passage in passages)
            value = next(filter(None, values), None)
            if value is None:
                break
            chain.append(value)
        return chain

    def _say(self, situation: str, known: str, step: Step, answer: str = "") -> str:
        wording = self._rng.choice(_WORDINGS[situation])
        return wording.format(known=known, finds=step.finds, answer=answer)


def _queries(step: Step, known: str) -> tuple[str, str]:
    """The query for a step, and another one if that did not find it."""
    return step.query.format(x=known), known
