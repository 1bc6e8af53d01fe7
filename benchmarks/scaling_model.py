"""A run as queues: what waits for what, and how long each thing takes (simpy).

No process is started, no token is sampled.

Episodes are admitted as in a run (controller/admission.py): (S+1) P groups have slots, and P slots
come back when a batch of P groups, in order of admission, has been trained on and every engine has
its weights. An episode holds a place at an actor. Each of its turns takes the actor's processor,
then the controller's one thread and the engine's HTTP server, then a row of the engine until it has
its tokens, then both again. An engine computes one step after the other for all its rows, as vLLM
does, and each step's signals take the controller's thread, too. The learner's thread of messages
takes in episodes, its other one trains.

Everything that computes shares the cores of one machine equally (`Machine`), or has a core of its
own (`Machine(cores=inf)`: a cluster).
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, NamedTuple

import simpy

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Costs:
    """Seconds of one core (of one device, in an engine or a learner that has one)."""

    engine_step: float
    """An engine's step, however much is in it."""
    engine_row: float
    """Each row of an engine's step, besides."""
    engine_turn: float
    """Each turn that begins in an engine, besides its tokens."""
    engine_prompt: float
    """Each token of the prompt of a turn that begins."""
    server_turn: float
    """A turn in the engine's HTTP server, which is a process of its own."""
    server_step: float
    """A step of the engine in its HTTP server."""
    controller_turn: float
    controller_frame: float
    """A step's signals, besides their tokens."""
    controller_token: float
    """Each token in a step's signals."""
    actor_turn: float
    """Environment, prompt and messages."""
    intake_turn: float
    """A turn in the learner's thread of messages."""
    train_turn: float
    """A turn, with all of its tokens, in the learner's training."""
    pause: float
    """Time that engines stand still for new weights."""


@dataclass(frozen=True)
class Work:
    """The turns and tokens that are played; each episode and turn draws from these."""

    turns: Sequence[int]
    responses: Sequence[int]
    """Tokens."""
    prompt: float
    """Tokens of a turn's prompt that the engine computes, on average."""


@dataclass(frozen=True)
class Setup:
    """A run; groups, group_size and max_staleness are settings of the learner."""

    groups: int
    group_size: int
    max_staleness: int
    places: int
    """Episodes that actors play at once, together."""
    engines: int = 1
    controllers: int = 1
    cores: float = inf
    """Cores of the one machine that everything shares."""


@dataclass(frozen=True)
class Outcome:
    """Over the second half of the updates; busy: shares of that time."""

    seconds_per_update: float
    turns_per_second: float
    tokens_per_second: float
    controller_busy: float
    learner_busy: float


class Meters(NamedTuple):
    """Counters of a run so far; times in seconds."""

    now: float
    turns: int
    tokens: int
    controllers: float
    """Time that controllers were busy, all together."""
    learner: float


class Machine:
    """Cores that all work on them shares equally, one thread each at most (processor sharing).

    Kept in virtual time, which goes on at the rate at which each piece of work does: its end is
    known when it begins.
    """

    def __init__(self, env: simpy.Environment, cores: float) -> None:
        self._env = env
        self.cores = cores
        # virtual time, and when it was read
        self._clock = 0.0
        self._seen = 0.0
        self._ends: list[tuple[float, int, simpy.Event]] = []
        self._number = count()
        self._timer = 0

    def work(self, seconds: float) -> simpy.Event:
        """Happens when so many seconds of a core's time have been spent on it."""
        if self.cores == inf:
            return self._env.timeout(seconds)
        self._advance()
        done = self._env.event()
        heappush(self._ends, (self._clock + seconds, next(self._number), done))
        self._set_timer()
        return done

    def _rate(self) -> float:
        return min(1.0, self.cores / len(self._ends)) if self._ends else 0.0

    def _advance(self) -> None:
        self._clock += (self._env.now - self._seen) * self._rate()
        self._seen = self._env.now

    def _set_timer(self) -> None:
        self._timer += 1
        if self._ends:
            timer = self._env.timeout(
                max(0.0, (self._ends[0][0] - self._clock) / self._rate()), self._timer
            )
            timer.callbacks.append(self._ring)

    def _ring(self, timer: simpy.Event) -> None:
        if timer.value != self._timer:
            return
        self._advance()
        while self._ends and self._ends[0][0] <= self._clock + 1e-12:
            heappop(self._ends)[2].succeed()
        self._set_timer()


class Thread:
    """Does one thing after the other, in the order in which they are asked for."""

    def __init__(self, env: simpy.Environment, machine: Machine) -> None:
        self._env = env
        self._machine = machine
        self._turn = simpy.Resource(env)
        self._free = 0.0  # on a core of its own: when all is done that was asked for
        self.busy = 0.0
        """Seconds that were, or on a core of its own will be, not idle."""

    def do(self, seconds: float) -> simpy.Event:
        """Happens when it is done."""
        if self._machine.cores < inf:
            return self._env.process(self._share(seconds))
        self.busy += seconds
        self._free = max(self._env.now, self._free) + seconds
        return self._env.timeout(self._free - self._env.now)

    def _share(self, seconds: float) -> Process:
        with self._turn.request() as mine:
            yield mine
            began = self._env.now
            yield self._machine.work(seconds)
            self.busy += self._env.now - began


class Engine:
    """Steps as long as it has rows."""

    def __init__(
        self, env: simpy.Environment, machine: Machine, costs: Costs, controller: Thread
    ) -> None:
        self._env = env
        self._costs = costs
        self._controller = controller
        self.thread = Thread(env, machine)
        self.server = Thread(env, machine)
        self._steps = 0
        self._stepping = False
        self._ends: list[
            tuple[int, int, simpy.Event]
        ] = []  # the step after which a row has all its tokens
        self._number = count()
        self._begun = 0.0  # cost of what begins in the next step
        self._wake = env.event()
        self._update: simpy.Event | None = None
        env.process(self._run())

    @property
    def rows(self) -> int:
        return len(self._ends)

    def generate(self, prompt: float, tokens: int) -> simpy.Event:
        """Happens when a turn has its tokens."""
        done = self._env.event()
        heappush(
            self._ends, (self._steps + self._stepping + tokens, next(self._number), done)
        )  # from the next step on
        self._begun += self._costs.engine_turn + self._costs.engine_prompt * prompt
        self._rouse()
        return done

    def update(self) -> simpy.Event:
        """Happens when it has new weights."""
        self._update = self._env.event()
        self._rouse()
        return self._update

    def _rouse(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Process:
        while True:
            if not self._ends and self._update is None:
                self._wake = self._env.event()
                yield self._wake
            if self._update is not None:
                applied = self._update
                self._update = None
                yield self._env.timeout(self._costs.pause)
                applied.succeed()
            if self._ends:
                yield from self._step()

    def _step(self) -> Process:
        rows = len(self._ends)
        begun = self._begun
        self._begun = 0.0
        self._stepping = True
        yield self.thread.do(self._costs.engine_step + self._costs.engine_row * rows + begun)
        self._steps = self._steps + 1
        self._stepping = False
        self.server.do(self._costs.server_step)
        self._controller.do(self._costs.controller_frame + self._costs.controller_token * rows)
        while self._ends and self._ends[0][0] <= self._steps:
            heappop(self._ends)[2].succeed()


class Run:
    """`updates` of a run, and what they took."""

    def __init__(self, costs: Costs, work: Work, setup: Setup, seed: int = 0) -> None:
        self._costs = costs
        self._work = work
        self._setup = setup
        self._random = random.Random(seed)
        self._env = env = simpy.Environment()
        self._machine = Machine(env, setup.cores)
        self._controllers = [Thread(env, self._machine) for _ in range(setup.controllers)]
        shard = lambda number: self._controllers[number % setup.controllers]  # noqa: E731
        self._engines = [
            Engine(env, self._machine, costs, shard(number)) for number in range(setup.engines)
        ]
        self._intake = Thread(env, self._machine)
        self._learner = Thread(env, self._machine)
        self._places = simpy.Resource(env, setup.places)
        self._groups: list[
            simpy.Event
        ] = []  # in order of admission; each happens, with its turns, when it is complete
        self._turns = self._tokens = self._admitted = 0

    def outcome(self, updates: int) -> Outcome:
        """Simulate it."""
        self._admit((self._setup.max_staleness + 1) * self._setup.groups)
        at = [self._meters()]
        learning = self._env.process(self._learn(updates, at))
        self._env.run(learning)
        return self._between(at[updates // 2], at[-1], len(at) - 1 - updates // 2)

    def full(self, seconds: float) -> Outcome:
        """Simulate so many seconds, in which places play one turn after the other.

        Nothing is learned, whatever becomes of them.
        """
        for number in range(self._setup.places):
            self._env.process(self._play_on(number % self._setup.controllers))
        at = []
        for until in (seconds / 2, seconds):
            self._env.run(until)
            at.append(self._meters())
        return self._between(*at, updates=0)

    def _between(self, first: Meters, last: Meters, updates: int) -> Outcome:
        seconds, turns, tokens, controllers, learner = (
            after - before for before, after in zip(first, last, strict=True)
        )
        return Outcome(
            seconds / updates if updates else inf,
            turns / seconds,
            tokens / seconds,
            controllers / seconds / self._setup.controllers,
            learner / seconds,
        )

    def _meters(self) -> Meters:
        controllers = sum(controller.busy for controller in self._controllers)
        return Meters(self._env.now, self._turns, self._tokens, controllers, self._learner.busy)

    def _learn(self, updates: int, at: list[Meters]) -> Process:
        groups = self._setup.groups
        for number in range(updates):
            batch = self._groups[number * groups : (number + 1) * groups]
            while (
                len(batch) < groups
            ):  # S = 0: they are not admitted before the engines have the weights
                yield self._published
                batch = self._groups[number * groups : (number + 1) * groups]
            yield self._env.all_of(batch)
            turns = sum(group.value or 0 for group in batch)
            yield self._learner.do(self._costs.train_turn * turns)
            self._published = self._env.process(self._publish())
            at.append(self._meters())

    def _publish(self) -> Process:
        yield self._env.all_of([engine.update() for engine in self._engines])
        self._admit(self._setup.groups)

    def _admit(self, groups: int) -> None:
        for _ in range(groups):
            complete = self._env.event()
            self._groups.append(complete)
            self._env.process(self._group(complete))

    def _group(self, complete: simpy.Event) -> Process:
        lengths = [self._random.choice(self._work.turns) for _ in range(self._setup.group_size)]
        yield self._env.all_of([self._env.process(self._episode(turns)) for turns in lengths])
        complete.succeed(sum(lengths))

    def _episode(self, turns: int) -> Process:
        self._admitted += 1
        controller = self._admitted % self._setup.controllers
        with self._places.request() as place:
            yield place
            for _ in range(turns):
                yield from self._turn(self._controllers[controller], self._engines_of(controller))
            yield self._intake.do(self._costs.intake_turn * turns)

    def _play_on(self, controller: int) -> Process:
        engines = self._engines_of(controller)
        while True:
            yield from self._turn(self._controllers[controller], engines)

    def _engines_of(self, controller: int) -> Sequence[Engine]:
        return self._engines[controller :: self._setup.controllers]

    def _turn(self, controller: Thread, engines: Sequence[Engine]) -> Process:
        half = self._costs.controller_turn / 2
        yield self._machine.work(self._costs.actor_turn)
        yield controller.do(half)
        tokens = self._random.choice(self._work.responses)
        engine = min(engines, key=lambda engine: engine.rows)
        yield engine.server.do(self._costs.server_turn / 2)
        yield engine.generate(self._work.prompt, tokens)
        yield engine.server.do(self._costs.server_turn / 2)
        yield controller.do(half)
        self._turns += 1
        self._tokens += tokens
