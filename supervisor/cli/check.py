"""`python run.py check --env NAME`: find out what is wrong with an environment of one's own.

Tasks are played as actors play them, by the expert and by an agent that answers nonsense.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from actors.conversation_stage import ConversationStage
from actors.stage import Stage, StepOutcome
from config import Config
from config.resolve import parse_overrides, resolve
from envs.base import Environment, Split
from envs.conversation import is_conversation, tools_of
from envs.conversation_checks import check_parts
from envs.harness import is_harness
from envs.play import close_episode, make_expert, play_expert_episode, start_episode
from envs.registry import make_environment, short_name
from envs.threads import call_in_thread
from envs.user_errors import describe_error, source_directory
from protocol.arrays import INT32, pack
from protocol.chat_codec import ChatCodec
from protocol.conversation import build_codec
from protocol.prompting import load_prompter
from protocol.tool_calls import CALL_END, CALL_START, format_hermes
from protocol.validation import MAX_TURNS
from supervisor.cli.check_tools import find_tool_mistakes
from supervisor.cli.harness_player import describe_task, play_requests
from supervisor.job import build_environment, environment_errors
from telemetry.analysis.intervals import wilson_interval
from telemetry.work_clock import WorkClock, show_work

SPLITS: tuple[Split, ...] = ("train", "held_out")
NONSENSE = "What is the meaning of this?"
TURN_END = "\N{END OF TEXT}"
"""Sign that ends a message where there is no model."""
MOST_FLAWS = 10
"""Flaws that are printed; others mostly are these in other tasks."""

MAX_PROMPT_LENGTH = 1 << 16


class Task(NamedTuple):
    """A numbered task of a split."""

    split: Split
    index: int


@dataclass
class Findings:
    """Findings about an environment."""

    flaws: dict[str, list[Task]] = field(default_factory=dict)
    """Flaw -> the tasks in which it showed."""
    expert_turns: list[int | None] = field(default_factory=list)
    """Turns of each episode of the expert; None of one that it did not win."""
    demonstrations: list[bool] = field(default_factory=list)
    """Successes of the expert, for each episode with the slips of a warm start."""
    warnings: list[str] = field(default_factory=list)
    """What is most likely a mistake, and breaks nothing."""
    codec: ChatCodec | None = None
    """Of an environment that talks in messages."""
    longest_prompt: int = 0
    """Length of the longest prompt."""
    unit: str = "characters"
    """What lengths of prompts count: tokens of a conversation with a model's own."""
    slowest_turn_s: float = 0.0
    """Seconds that the slowest start, or turn, took."""
    slowest_task: Task | None = None
    """The task that it was in."""

    def add_flaw(self, words: str, task: Task) -> None:
        """Note a flaw that showed in a task."""
        self.flaws.setdefault(words, []).append(task)

    @contextmanager
    def time_turn(self, task: Task) -> Iterator[None]:
        """Note how long what is inside takes, if nothing has taken longer."""
        began_s = time.monotonic()
        yield
        seconds = time.monotonic() - began_s
        if seconds > self.slowest_turn_s:
            self.slowest_turn_s = seconds
            self.slowest_task = task


class CharacterPrompter:
    """Stands in for a tokenizer and a chat template: a character is a token."""

    opens_thought = False
    end_tokens: Sequence[int] = ()

    def find_turn_end(self) -> str:
        """The sign at the end of a message."""
        return TURN_END

    def encode_prompt(self, message: str) -> list[int]:
        """Code points of a prompt."""
        return [ord(character) for character in message]

    def read_response(self, tokens: list[int]) -> str:
        """The text of code points."""
        return "".join(map(chr, tokens))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Messages with their roles, each with a sign at its end."""
        del tools
        said = [f"{message['role']}: {message['content']}{TURN_END}" for message in messages]
        return "".join(said) + "assistant: " * add_generation_prompt

    def special_tokens(self) -> dict[int, str]:
        """The sign at the end of a message."""
        return {ord(TURN_END): TURN_END}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Code points of texts."""
        return [self.encode_prompt(text) for text in texts]

    def decode_exactly(self, tokens: Sequence[int]) -> str:
        """The text of code points."""
        return "".join(map(chr, tokens))


def make_codec(config: Config, environment: Environment) -> ChatCodec:
    """Make a codec of the model's template, or of characters where it is in no directory."""
    tools = tools_of(environment)
    if _has_tokenizer(config):
        model_dir = Path(config.model.name)
        return build_codec(load_prompter(model_dir, config.model.chat_options()), tools)
    return ChatCodec(CharacterPrompter(), tools)


def _has_tokenizer(config: Config) -> bool:
    """Tell whether the model is in a directory, with its tokenizer."""
    return (Path(config.model.name) / "tokenizer.json").is_file()


def main(arguments: list[str]) -> int:
    """Check an environment; 1 if something is wrong with it."""
    parser = argparse.ArgumentParser(
        prog="run.py check",
        description=(
            "Play tasks of an environment as a run would, and say what is wrong with it. Any "
            "setting of a run may follow (--env ./FILE.py, --env.settings.NAME VALUE)."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of a run, in TOML")
    parser.add_argument(
        "--tasks", type=int, default=50, metavar="N", help="tasks of each split (default 50)"
    )
    options, rest = parser.parse_known_args(arguments)
    config = resolve(options.config, parse_overrides(rest))
    environment = build_environment(config)
    console = Console()
    with show_work("playing tasks") as work:
        findings = check_environment(config, environment, options.tasks, work)
    for line in describe_findings(config, environment, findings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return int(bool(findings.flaws))


def check_environment(
    config: Config, environment: Environment, tasks_per_split: int, work: WorkClock
) -> Findings:
    """Play tasks of both splits, and note what is wrong."""
    findings = Findings()
    if is_conversation(environment):
        with environment_errors(config):
            findings.codec = make_codec(config, environment)
        if _has_tokenizer(config):
            findings.unit = "tokens"
    home = source_directory(environment)
    tasks = choose_tasks(environment, tasks_per_split)
    checks: list[Callable[[Config, Environment, Task, Findings], None]] = [
        _check_start,
        _check_nonsense,
        _check_tools,
    ]
    if hasattr(environment, "expert"):
        checks += [_check_expert, _check_demonstration]
    for task in work.track(tasks, "playing tasks"):
        for check in checks:
            try:
                call_in_thread(partial(check, config, environment, task, findings))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                findings.add_flaw(describe_error(error, home), task)
    if findings.slowest_task and findings.slowest_turn_s > config.actor.step_timeout:
        findings.add_flaw(
            f"a turn, or a start, took {findings.slowest_turn_s:.3g} s; raise actor.step_timeout "
            f"({config.actor.step_timeout:g} s) above it",
            findings.slowest_task,
        )
    if tasks and not findings.flaws:
        work.begin("playing one in another process")
        try:
            _check_other_process(config, environment, tasks[0], findings)
        except Exception as error:
            findings.add_flaw(f"in another process: {describe_error(error, home)}", tasks[0])
    return findings


def choose_tasks(environment: Environment, tasks_per_split: int) -> list[Task]:
    """The first task of each split, and some others."""
    tasks = []
    for split in SPLITS:
        size = environment.size(split)
        others = random.Random(0).sample(range(size), min(size, tasks_per_split))
        tasks += [Task(split, index) for index in sorted({0, *others[1:]}) if size]
    return tasks


def opening_of(environment: Environment, task: Task, seed: int) -> tuple[str, str, str]:
    """The task, the first prompt and the first state of a task, as an agent finds them."""
    if is_harness(environment):
        return describe_task(environment, task.split, task.index), "", ""
    episode: Any = start_episode(environment, task.split, task.index, seed)
    try:
        if is_conversation(environment):
            check_parts(episode)
            return str(episode.task), repr(list(episode.messages)), ""
        prompt = environment.prompt(environment.view(episode))
        return str(episode.task), str(prompt), str(episode.state_key())
    finally:
        close_episode(episode)


def _opening_call(environment: Environment) -> str:
    """The call that opens a task."""
    if is_harness(environment):
        return "task(split, index)"
    return "start(split, index, seed)"


def opening_elsewhere(name: str, settings: Mapping[str, Any], task: Task) -> tuple[str, str, str]:
    """The same, of an environment that a process makes for itself."""
    return opening_of(make_environment(name, **settings), task, 0)


def _check_start(config: Config, environment: Environment, task: Task, findings: Findings) -> None:
    """A task begins in the same way, whoever opens it and as often as it is."""
    opening = opening_of(environment, task, 0)
    if opening_of(environment, task, 0) != opening:
        findings.add_flaw(
            f"{_opening_call(environment)} gives something else the second time; make the task of "
            "its split and index, and what is drawn in it of the seed",
            task,
        )
    elif opening_of(environment, task, 1)[0] != opening[0]:
        findings.add_flaw(
            "start(split, index, seed) gives another task for another seed; the members of a "
            "group differ in their seeds, and are compared in the same task",
            task,
        )


def _check_other_process(
    config: Config, environment: Environment, task: Task, findings: Findings
) -> None:
    """A task is the same one in another process, in which texts have other hashes."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        elsewhere = processes.submit(
            opening_elsewhere, config.env.name, config.environment_settings(), task
        )
        if elsewhere.result() != opening_of(environment, task, 0):
            findings.add_flaw(
                f"{_opening_call(environment)} gives another task in another process; draw it by "
                "random.Random(f'{split} {index}'), say, and not by hash() or a set's order",
                task,
            )


def _check_nonsense(
    config: Config, environment: Environment, task: Task, findings: Findings
) -> None:
    """An agent that never answers in the right form comes to an end."""
    if is_harness(environment):
        _play_harness(config, environment, task, findings)
        return
    if is_conversation(environment):
        names = ["no-such-tool", *(tool["function"]["name"] for tool in tools_of(environment))]
        calls = [f"{CALL_START}{NONSENSE}{CALL_END}", *(format_hermes([(n, {})]) for n in names)]
        for answers in ([NONSENSE], calls):
            texts = itertools.cycle(answers)
            respond = partial(next, texts)
            _play(environment, task, lambda stage, respond=respond: respond, findings)
        return
    turns = _play(environment, task, lambda stage: lambda: NONSENSE, findings)
    if any(turn.valid for turn in turns):
        findings.add_flaw(f"parse() calls {NONSENSE!r} a valid response", task)


def _play_harness(config: Config, harness: Environment, task: Task, findings: Findings) -> None:
    """Answer all requests of a harness by nonsense; what a run would drop it for is raised."""
    answer = ChatCodec(CharacterPrompter()).encode_words(NONSENSE)

    def respond(prompt: list[int]) -> list[int]:
        findings.longest_prompt = max(findings.longest_prompt, len(prompt))
        return answer

    turns = play_requests(
        config,
        harness,
        task,
        CharacterPrompter(),
        build_character_codec,
        respond,
        MAX_PROMPT_LENGTH,
    )
    is_over = False
    while not is_over:
        with findings.time_turn(task):
            is_over = next(turns, None) is None


def build_character_codec(tools: Sequence[Mapping[str, Any]]) -> ChatCodec:
    """Build a codec of characters for conversations with these tools."""
    return ChatCodec(CharacterPrompter(), tools)


def _check_tools(config: Config, environment: Environment, task: Task, findings: Findings) -> None:
    """In the first task, tools that are called soundly answer without a mistake of their own."""
    if findings.codec is None or task.index != 0:
        return
    mistakes = find_tool_mistakes(
        environment, findings.codec, task.split, task.index, MAX_PROMPT_LENGTH
    )
    findings.warnings += [words for words in mistakes if words not in findings.warnings]


def _check_expert(config: Config, environment: Environment, task: Task, findings: Findings) -> None:
    """The expert's turns are valid, written down and read as an agent's are."""

    def begin(stage: Any) -> Callable[[], str | list[int]]:
        expert = make_expert(environment, stage.episode, random.Random(task.index))
        if is_conversation(environment):
            return lambda: stage.encode_answer(expert.act(list(stage.messages)))
        return lambda: environment.format_response(*expert.act(stage.view))

    if not has_expert(environment, task):
        return
    findings.expert_turns.append(None)  # where playing raises, the expert is there all the same
    turns = _play(environment, task, begin, findings)
    if turns and turns[-1].success:
        findings.expert_turns[-1] = len(turns)
    flaw = "parse() does not call valid what format_response() writes for the expert"
    if is_conversation(environment):
        flaw = "what the expert says is not read as it was said, or reply() calls it invalid"
    for turn in turns:
        if not turn.valid:
            findings.add_flaw(flaw, task)


def _check_demonstration(
    config: Config, environment: Environment, task: Task, findings: Findings
) -> None:
    """A warm start can imitate the expert, who makes mistakes and wastes turns on purpose."""
    settings = config.warm_start
    if task.split != "train" or not has_expert(environment, task):
        return
    longer = config.environment_settings() | {"max_turns": settings.max_turns}
    episode = play_expert_episode(
        make_environment(config.env.name, **longer),
        task.split,
        task.index,
        random.Random(task.index),
        expert_error_rate=settings.expert_error_rate,
        wasted_turn_rate=settings.wasted_turn_rate,
        max_turns=MAX_TURNS,
    )
    findings.demonstrations.append(episode.success)


def has_expert(environment: Environment, task: Task) -> bool:
    """Tell whether somebody can demonstrate a task."""
    episode = start_episode(environment, task.split, task.index, 0)
    try:
        make_expert(environment, episode, random.Random(0))
    except ValueError:
        return False
    finally:
        close_episode(episode)
    return True


def _play(
    environment: Environment,
    task: Task,
    begin: Callable[[Any], Callable[[], str | list[int]]],
    findings: Findings,
) -> list[StepOutcome]:
    """Play a task as an actor does; returns its turns, and notes how long the slowest took.

    `begin` gets the stage of a task that has started, and returns what answers each prompt, as a
    text or in tokens.
    """
    prompter = CharacterPrompter()
    encode = prompter.encode_prompt
    stage: Stage | ConversationStage = Stage(environment, prompter, MAX_PROMPT_LENGTH)
    if is_conversation(environment):
        assert findings.codec is not None
        encode = findings.codec.encode_words
        stage = ConversationStage(environment, findings.codec, MAX_PROMPT_LENGTH)
    turns: list[StepOutcome] = []
    try:
        with findings.time_turn(task):
            prompt = stage.start(task.split, task.index, 0).prompt
        respond = begin(stage)
        while prompt is not None and len(turns) < environment.max_turns:
            findings.longest_prompt = max(findings.longest_prompt, len(prompt))
            response = respond()
            if isinstance(response, str):
                response = encode(response)
            with findings.time_turn(task):
                turns.append(stage.step(pack(np.array(response), INT32)))
            prompt = turns[-1].prompt
    finally:
        stage.close()
    if prompt is not None:
        findings.add_flaw(
            f"an episode goes on after max_turns ({environment.max_turns}) turns; step() has to "
            "say done=True then, and truncated=True",
            task,
        )
    elif not turns or not turns[-1].done:
        findings.add_flaw(f"a prompt has more than {MAX_PROMPT_LENGTH:,} {findings.unit}", task)
    return turns


def describe_findings(
    config: Config, environment: Environment, findings: Findings
) -> Iterator[str]:
    """Describe, in lines, what was found out."""
    sizes = {split: environment.size(split) for split in SPLITS}
    yield (
        f"{short_name(config.env.name)}: {sizes['train']:,} tasks to train on, "
        f"{sizes['held_out']:,} held out; at most {environment.max_turns} turns"
    )
    yield f"prompts: {findings.longest_prompt:,} {findings.unit} at most"
    yield from _describe_expert(config, findings)
    for words in findings.warnings:
        yield f"warning: {words}"
    if not findings.flaws and not findings.warnings:
        yield "nothing is wrong with it"
    for words, tasks in list(findings.flaws.items())[:MOST_FLAWS]:
        more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
        yield f"wrong: {words} (task {tasks[0].index} of {tasks[0].split}{more})"


def _describe_expert(config: Config, findings: Findings) -> Iterator[str]:
    turns = [count for count in findings.expert_turns if count is not None]
    if not findings.expert_turns:
        yield "expert: none; without a warm start, begin with a model that follows the prompt"
        return
    won = _describe_share(len(turns), len(findings.expert_turns))
    mean = f", in {fmean(turns):.1f} turns on average" if turns else ""
    yield f"expert: won {won}{mean}"
    if findings.demonstrations:
        settings = config.warm_start
        won = _describe_share(sum(findings.demonstrations), len(findings.demonstrations))
        yield (
            f"demonstrations: won {won}; the others are not imitated (warm_start.expert_error_rate "
            f"{settings.expert_error_rate:g}, wasted_turn_rate {settings.wasted_turn_rate:g})"
        )


def _describe_share(part: int, count: int) -> str:
    low, high = wilson_interval(part / count, count)
    return f"{part} of {count} ({100 * low:.0f} to {100 * high:.0f} %)"
