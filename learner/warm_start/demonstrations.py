"""Play demonstrations by the environment's expert; tokenize them, or conversations of a file."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from config import Config, ConfigError
from envs.conversation import Message, describe_message, to_chat_messages
from envs.play import ExpertEpisode, play_expert_episode
from envs.registry import make_environment
from envs.user_errors import describe_error, source_directory, timeout_error
from learner.data.samples import TrainingSample
from learner.warm_start.conversation_file import FileConversation
from protocol.chat_codec import Answer, ChatCodec
from protocol.conversation import Transcript, build_codec
from protocol.prompting import Prompter
from protocol.tool_calls import describe_tools, format_hermes, to_json
from protocol.validation import MAX_TURNS

log = logging.getLogger(__name__)

FIRST_TASKS = 64
"""How many tasks may fail at the beginning, all of them, before it is an error."""

CHECKS_PER_TIMEOUT = 10
"""How often the progress of a demonstration is checked within actor.step_timeout."""

Turns = list[tuple[str, str]]
"""(prompt, response) texts of one episode."""


def play_demonstrations(config: Config, episodes: int) -> Iterator[Turns]:
    """Play as `play_tasks` does; yield the texts of what was won."""
    won = (episode for episode in play_tasks(config, episodes) if episode is not None)
    return (list_texts(episode) for episode in won)


def list_texts(episode: ExpertEpisode) -> Turns:
    """List the (prompt, response) texts of an episode's turns.

    Those of a conversation are without what a chat template has around them.
    """
    turns = list(episode.turns)
    tools = describe_tools(episode.tools) if episode.tools else ""
    for messages, answer, _ in episode.conversation:
        prompt = "\n".join([*filter(None, [tools]), *(message.content for message in messages)])
        tools = ""
        calls = format_hermes([(call.name, call.arguments) for call in answer.tool_calls])
        thought = f"<think>{answer.reasoning}</think>" if answer.reasoning else ""
        turns.append((prompt, "\n".join(filter(None, [thought, answer.content, calls]))))
    return turns


def play_tasks(config: Config, episodes: int) -> Iterator[ExpertEpisode | None]:
    """Play the first `episodes` tasks of a shuffle of the training tasks.

    Yields each; None of one that was not won. A task that fails is logged, and is not won.
    NoDemonstrations if all of the first ones fail.
    """
    settings = config.warm_start
    seed = config.run.seed
    environment = make_environment(
        config.env.name, **config.environment_settings() | {"max_turns": settings.max_turns}
    )
    home = source_directory(environment)
    size = environment.size("train")
    tasks = random.Random(seed).sample(range(size), min(episodes, size))
    failures = _TaskFailures(min(FIRST_TASKS, len(tasks)))
    for number, task in enumerate(tasks):
        play = partial(
            play_expert_episode,
            environment,
            "train",
            task,
            random.Random(f"{seed}:{task}"),
            expert_error_rate=settings.expert_error_rate,
            wasted_turn_rate=settings.wasted_turn_rate,
            max_turns=MAX_TURNS,
        )
        try:
            episode = _Demonstration(play).result(config.actor.step_timeout, home)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failures.add(task, describe_error(error, home))
            failures.check(number + 1)
            yield None
            continue
        yield episode if episode.success else None


class _TaskFailures:
    """The tasks that could not be demonstrated, and why."""

    def __init__(self, allowed: int) -> None:
        """`allowed`: how many of the first tasks may fail without one that does not."""
        self._allowed = allowed
        self._count = 0
        self._first_tasks: dict[str, int] = {}  # reason -> the first task that failed for it

    def add(self, task: int, reason: str) -> None:
        """Count a task that failed; log it, inside its except clause, if the reason is new."""
        self._count += 1
        if reason in self._first_tasks:
            return
        log.warning(
            "training task %d cannot be demonstrated: %s",
            task,
            reason,
            exc_info=not self._first_tasks,
        )
        self._first_tasks[reason] = task

    def check(self, tasks_played: int) -> None:
        """Raise NoDemonstrations if none of the first tasks could be demonstrated."""
        if self._count < tasks_played or tasks_played < self._allowed:
            return
        reason, task = next(iter(self._first_tasks.items()))
        raise NoDemonstrations(
            f"env.name: none of the first {tasks_played} tasks can be demonstrated; task {task}: "
            f"{reason}"
        ) from None


class _Demonstration(threading.Thread):
    """An episode that the expert plays in a thread of its own.

    The thread is left to itself when a turn takes too long.
    """

    def __init__(self, play: Callable[..., ExpertEpisode]) -> None:
        """`play` takes `on_turn`, which it calls when a turn begins."""
        super().__init__(daemon=True, name="demonstration")
        self._play = play
        self._turns = 0
        self._episode: Future[ExpertEpisode] = Future()

    def run(self) -> None:
        try:
            self._episode.set_result(self._play(on_turn=self._count_turn))
        except BaseException as error:
            self._episode.set_exception(error)

    def _count_turn(self) -> None:
        self._turns += 1

    def result(self, turn_timeout_s: float, home: str) -> ExpertEpisode:
        """Play the episode, and return it.

        Raises what the environment raises, and UserCodeError when it takes more than
        `turn_timeout_s` for a turn, or to start.

        Checks are counted, and not seconds, so that time in which this process was stopped is none
        that a turn took.
        """
        self.start()
        turns = 0
        checks = 0
        while self.is_alive():
            self.join(turn_timeout_s / CHECKS_PER_TIMEOUT)
            if self._turns == turns:
                checks += 1
            else:
                checks = 0
            turns = self._turns
            if checks > CHECKS_PER_TIMEOUT and self.is_alive():
                raise timeout_error(self, turn_timeout_s, home)
        return self._episode.result()


class NoDemonstrations(RuntimeError):
    """No task can be demonstrated; the message says what the first one said, and where."""


class TurnTokenizer:
    """Makes samples of supervised learning from turns' texts, in the policy's chat format."""

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter
        self._codecs: dict[str, ChatCodec] = {}  # by the tools that they show, in JSON

    def tokenize(self, episode: ExpertEpisode) -> list[TrainingSample]:
        """Make one sample a turn that is to be imitated.

        ValueError for what the model's form cannot hold.
        """
        if episode.conversation:
            return self._tokenize_conversation(episode)
        return self.tokenize_turns(episode.turns)

    def _tokenize_conversation(self, episode: ExpertEpisode) -> list[TrainingSample]:
        """Make samples whose prompts are those of a run, had its policy said the same.

        ValueError for a call that a run would not read as it was made.
        """
        codec = self._codec_of(episode.tools)
        transcript = Transcript(codec)
        samples = []
        before: list[Message] = []
        for number, (messages, answer, taught) in enumerate(episode.conversation):
            said = to_chat_messages(messages, before)
            prompt = transcript.extend(said) if number else transcript.open(said)
            response = codec.encode_answer(*to_chat_messages([answer]))
            read, _ = transcript.read(response)
            _check_calls(answer, read)
            before = [answer]
            if taught:
                samples.append(_build_sample(np.array(prompt), np.array(response)))
        return samples

    def _codec_of(self, tools: Sequence[Mapping[str, Any]]) -> ChatCodec:
        """Return the codec of conversations with these tools, which is built once."""
        key = to_json(tools)
        if key not in self._codecs:
            self._codecs[key] = build_codec(self._prompter, tools)
        return self._codecs[key]

    def tokenize_turns(self, turns: Sequence[tuple[str, str]]) -> list[TrainingSample]:
        """Make one sample a turn, in which every token of the response is learned.

        The end of the turn is a token of its response. What a prompt has of a thought is none.
        """
        prompts = self._prompter.encode_prompts([prompt for prompt, _ in turns])
        responses = self._prompter.encode_responses([response for _, response in turns])
        return [
            _build_sample(np.array(prompt), np.array(response))
            for prompt, response in zip(prompts, responses, strict=True)
        ]


def tokenize_conversation(
    conversation: FileConversation, turn_tokenizer: TurnTokenizer, max_model_len: int
) -> list[TrainingSample]:
    """Make one sample of each message that is imitated.

    Raises ConfigError for a conversation that the model's form cannot hold, or its context.
    """
    try:
        samples = turn_tokenizer.tokenize(conversation.episode)
    except ValueError as error:
        raise ConfigError(f"{conversation.place}: {error}") from None
    longest = max(sample.length for sample in samples)
    if longest > max_model_len:
        raise ConfigError(
            f"{conversation.place}: its {longest:,} tokens are more than engine.max_model_len "
            f"({max_model_len:,}); raise that, or shorten it"
        )
    return samples


def _check_calls(said: Message, read: Answer) -> None:
    """Raise ValueError if a policy that says this would not make the same calls."""
    calls = [(call.name, call.arguments) for call in read.calls if not call.error]
    if to_json(calls) != to_json([(call.name, call.arguments) for call in said.tool_calls]):
        raise ValueError(
            f"in the model's form, {describe_message(said)!r:.200} is read otherwise; make one "
            "call at a time, without tags of calls in words, or try --model.tool_format hermes"
        )


def _build_sample(prompt: np.ndarray, response: np.ndarray) -> TrainingSample:
    length = len(response)
    return TrainingSample(
        prompt=prompt.astype(np.int32),
        response=response.astype(np.int32),
        mask=np.ones(length, bool),
        log_mu=np.zeros(length, np.float32),
        age=np.zeros(length, np.int32),
        advantage=1.0,
    )
