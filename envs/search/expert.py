"""A demonstrator that knows how questions are built, and nothing else: every name and value is read
in the passages that it was shown.

It follows the question's chain of facts as far as the passages in the view lead, and searches for
the next fact. So it can be asked at any turn, and goes on after somebody else's searches.
"""

from __future__ import annotations

import random
import re
from functools import cache

from envs.search.actions import act
from envs.search.relations import ASKED, CLUES, WORDINGS, Step, last_step
from envs.view import AgentView

_DOCUMENT = re.compile(r"Doc \d+: (.*)")

# True of every country, asked by no question.
_NEEDLESS = ("climate", "terrain", "exports", "religions", "coastline", "industries")

# The sub-goal in a few words. {known}: what has been found so far; {finds}: what comes next;
# {found}: the answer.
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
        "The {finds} of {known} is {found}.",
        "It says that the {finds} of {known} is {found}.",
    ),
    "give_up": ("I cannot find it. I guess.", "I have looked for it in vain. I guess."),
    "needless": ("I want to know more first.", "I look around a little."),
}


@cache
def _readings() -> list[tuple[re.Pattern[str], tuple[Step, ...]]]:
    """Every form of question, with the steps to its answer.

    The more specific forms come first: `the airport {x}` before `{x}`.
    """
    readings = []
    for clue in sorted(CLUES, key=lambda clue: -len(clue.text)):
        for relation in ASKED:
            for wording in WORDINGS:
                before, after = wording.format(label=relation.label, place=clue.text).split("{x}")
                readings.append(
                    (
                        re.compile(f"{re.escape(before)}(.+){re.escape(after)}"),
                        (*clue.steps, last_step(relation)),
                    )
                )
    return readings


class SearchExpert:
    """Answers one question. Each turn is decided anew from the view; only the wording is random."""

    def __init__(self, task: str, rng: random.Random) -> None:
        found, self._steps = next(
            ((m, steps) for pattern, steps in _readings() if (m := pattern.fullmatch(task))),
            (None, ()),
        )
        if found is None:
            raise ValueError(
                f"the expert does not understand the question {task!r}: it knows those that come "
                "with the project, not search.questions"
            )
        self._start: str = found[1]
        self._rng = rng

    def act(self, view: AgentView) -> tuple[str, str]:
        """(thought, action): the next search, or the answer."""
        chain = self._chain(view)
        if len(chain) > len(self._steps):
            return self._say("answer", chain[-2], self._steps[-1], chain[-1]), act(
                "answer", chain[-1]
            )
        step = self._steps[len(chain) - 1]
        known = chain[-1]
        tried = {action for _, _, action in view.past}
        searches = [
            search
            for query in _queries(step, known)
            if (search := act("search", query)) not in tried
        ]
        if not searches:
            return self._say("give_up", known, step), act("answer", known)
        again = len(searches) < len(_queries(step, known))
        return self._say(
            "again" if again else "first" if len(chain) == 1 else "next", known, step
        ), searches[0]

    def waste_turn(self, view: AgentView) -> tuple[str, str]:
        """A search that does not help: for what is asked, without saying of what, or for a fact
        that nobody asked for."""
        chain = self._chain(view)
        query = self._steps[-1].relation.label
        if len(chain) >= len(self._steps):
            query = f"{self._rng.choice(_NEEDLESS)} of {chain[len(self._steps) - 1]}"
        return self._say("needless", chain[-1], self._steps[-1]), act("search", query)

    def _chain(self, view: AgentView) -> list[str]:
        """What the question names, and what the shown passages lead to from there, fact by fact."""
        texts = [text for _, text, _ in view.past] + [view.observation.text]
        passages = [line for text in texts for line in _DOCUMENT.findall(text)]
        chain = [self._start]
        for step in self._steps:
            found = next(
                (found for passage in passages if (found := step.read(passage, chain[-1]))), None
            )
            if found is None:
                break
            chain.append(found)
        return chain

    def _say(self, situation: str, known: str, step: Step, found: str = "") -> str:
        return self._rng.choice(_WORDINGS[situation]).format(
            known=known, finds=step.finds, found=found
        )


def _queries(step: Step, known: str) -> tuple[str, str]:
    """What to search for, and what else if that did not find it."""
    return step.query.format(x=known), known
