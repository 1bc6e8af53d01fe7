"""A fork server, which loads environment and tokenizer once, and forks actors that share them.

Actors that crash are replaced.

The parent never opens a ZeroMQ context while children may be forked from it (its threads would not
survive the fork), so it asks the controller for the welcome in a context that is gone before the
first fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import inf

import zmq
import zmq.asyncio

from actors.actor import CLOSE_SECONDS, Actor, ControllerLost
from actors.crash import ActorSlot
from actors.harness_run import probe_harness
from actors.pulse import LOOK_SECONDS, PulseMonitor
from envs.base import Environment, Split
from envs.harness import is_harness
from envs.play import close_episode, start_episode
from envs.registry import Environments, make_environments
from envs.threads import call_in_thread
from envs.user_errors import describe_error
from protocol.codec import BadFrame, decode, encode
from protocol.lifetime import describe_end, dying_with_parent
from protocol.messages import Hello, Welcome
from protocol.prompting import Prompter
from protocol.security import CurveKeys, connect

log = logging.getLogger(__name__)

ENDED = 40
LOST = 41
FAILED = 42
"""Exit statuses of an actor: its work is done, it has lost its controller, or our code raised.

Any other one is not ours: code of an environment, or a signal, has ended the process.
"""

OTHERS_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Signals that come from outside, the kernel's want of memory included."""

STANDS_STILL_SECONDS = 60.0
"""How long an actor's event loop may stand still, beyond actor.step_timeout.

Then code that keeps all threads of the process from running (a regular expression, an extension)
is taken to have no end.
"""

FIRST_TASKS = 3
"""Tasks of which one must start, for an environment to be played on this machine."""

ANSWERS_WITHIN = 5.0
"""Seconds in which a controller answers that one actor takes for lost."""

END_SECONDS = CLOSE_SECONDS + 0.5
"""Seconds that actors have from SIGTERM to their end, before they are killed."""

CRASHES_PER_MINUTE = 3
"""Crashes within a minute, per actor, after which the fleet gives up."""


class FleetError(RuntimeError):
    """The fleet cannot work; the message says why and what to change."""


def run_fleet(
    endpoint: str, actors: int, episodes: int, connect_seconds: float, keys: CurveKeys | None = None
) -> None:
    """Fork `actors` actors of the job at `endpoint` and keep that many alive until the job is over.

    When the controller is lost they wait for it, or for the one of a run that is resumed there, as
    long as at the beginning.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while _play(endpoint, actors, episodes, connect_seconds, keys):
        log.warning(
            "the controller at %s is lost: looking for it for %g s", endpoint, connect_seconds
        )
    log.info("the run is over")


def _play(
    endpoint: str, actors: int, episodes: int, connect_seconds: float, keys: CurveKeys | None
) -> bool:
    """Play until the job is over, or its controller is lost; return whether it is lost."""
    log.info("asking the controller at %s, for %g s at most", endpoint, connect_seconds)
    welcome = fetch_welcome(endpoint, connect_seconds, keys)
    environments = load_environments(welcome)
    prompter = Prompter(welcome.tokenizer_json, welcome.chat)
    gc.collect()
    log.info("%d actors play %s", actors, welcome.environment)
    gc.freeze()  # the shared pages are not touched by the children's collector

    def body(slot: ActorSlot) -> None:
        told_to_end = asyncio.run(
            _act(endpoint, episodes, welcome, environments, prompter, keys, slot)
        )
        if told_to_end:
            signal.raise_signal(signal.SIGTERM)

    def is_there() -> bool:
        try:
            return fetch_welcome(endpoint, ANSWERS_WITHIN, keys).session == welcome.session
        except FleetError:
            return False

    return supervise(body, actors, is_there, welcome.step_timeout + STANDS_STILL_SECONDS)


def load_environments(welcome: Welcome) -> Environments:
    """Make the environments, and have them load what they load lazily, before the forks.

    Raises FleetError if one cannot be made, or none of its first tasks started. A task that cannot
    start costs its own episodes alone.
    """
    try:
        environments = make_environments(
            welcome.environment, welcome.environment_settings, welcome.settings_by_set
        )
        reason = _try_start(environments.training)
        for evaluation_set, environment in environments.by_set.items():
            reason_of_set = _try_start(environment)
            if reason_of_set and not reason:
                reason = f"evaluation set {evaluation_set}: {reason_of_set}"
    except KeyboardInterrupt:  # whoever started the fleet ends it
        raise
    except BaseException as error:
        reason = describe_error(error)
    if reason:
        raise FleetError(f"{welcome.environment} cannot be played on this machine: {reason}")
    return environments


def _try_start(environment: Environment) -> str:
    """Start one of the first tasks; returns why none of them can be, and "" if one can."""
    reason = ""
    for split in ("train", "held_out"):
        for index in range(min(FIRST_TASKS, environment.size(split))):
            try:
                call_in_thread(partial(_start_and_close, environment, split, index))
                return ""
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                reason = reason or describe_error(error)
    return reason or "it has no tasks"


def _start_and_close(environment: Environment, split: Split, index: int) -> None:
    if is_harness(environment):
        probe_harness(environment, split, index)
        return
    close_episode(start_episode(environment, split, index, 0))


def reseed() -> None:
    """Give this process global random generators of its own, in place of copies.

    It was forked with copies of its parent's. Python's own generator does so by itself; others are
    reseeded where somebody has imported them.
    """
    numpy = sys.modules.get("numpy")
    torch = sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))
    if torch is not None:
        torch.default_generator.seed()


def fetch_welcome(endpoint: str, seconds: float, keys: CurveKeys | None = None) -> Welcome:
    """Ask the controller at `endpoint` how to play.

    Raises FleetError if it does not answer in time.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as connection:
        connection.set(zmq.LINGER, 0)
        connect(connection, endpoint, keys)
        connection.send(encode(Hello(host=os.uname().nodename, pid=os.getpid())))
        if not connection.poll(int(seconds * 1000)):
            raise FleetError(
                f"no controller answers at {endpoint} after {seconds:g} s; does the job run? Are "
                "--connect and --keys right?"
            )
        try:
            answer = decode(connection.recv())
        except BadFrame as error:
            raise FleetError(
                f"what answers at {endpoint} is no controller of this version: {error}"
            ) from None
        if not isinstance(answer, Welcome):
            raise FleetError(
                f"the controller at {endpoint} sent {type(answer).__name__} instead of a welcome"
            )
        return answer


def supervise(
    body: Callable[[ActorSlot], None],
    actors: int,
    is_there: Callable[[], bool],
    longest_seconds: float = inf,
) -> bool:
    """Run the body in forked children, one for each actor, and replace those that fail.

    A child is replaced that crashed, or that has lost the controller while that `is_there`. An
    actor whose pulse stands still for `longest_seconds` is ended, too. Returns False when all have
    ended by themselves, and True when the controller is lost: the others are ended then. SIGTERM
    ends them, and then this process.

    Raises FleetError when they crash so often that replacing them is pointless. Those that an
    environment's code has ended do not count: their episodes are over.
    """
    children = {}
    for _ in range(actors):
        slot = ActorSlot()
        children[fork(body, slot)] = slot
    crash_times: list[float] = []
    monitor = PulseMonitor(longest_seconds)
    with catch_sigterm() as sigterm, _end_children(children):
        while children and not sigterm.is_set():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                monitor.look({pid: slot.pulse for pid, slot in children.items()})
                time.sleep(LOOK_SECONDS)
                continue
            monitor_words = monitor.describe_end(pid)
            slot = children.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            if slot is None or code == ENDED:
                continue
            if code == LOST:
                if not is_there():
                    return True
                log.warning("actor %d alone had lost the controller: replaced", pid)
                slot.vacate()
            else:
                _vacate_crashed(slot, pid, code, monitor_words)
                if not slot.reports:
                    crash_times.append(time.monotonic())
                _check_crashes(crash_times, CRASHES_PER_MINUTE * actors, describe_end(code))
            children[fork(body, slot)] = slot
    return False


@contextlib.contextmanager
def catch_sigterm() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets while inside. If it came, it ends the process afterwards.

    Outside the main thread, which signals belong to, it keeps the meaning that it has.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
    if came.is_set():
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def _end_children(children: Mapping[int, object]) -> Iterator[None]:
    """End, in the end, the children (by pid) that are left: SIGTERM first, then by force.

    In between they have time to close what their episodes hold open.
    """
    try:
        yield
    finally:
        left = set(children)
        for pid in left:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while left and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS / 10)
            left = {pid for pid in left if not _has_ended(pid)}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for pid in left:
            os.waitpid(pid, 0)


def _has_ended(pid: int) -> bool:
    """Tell whether a child has ended; True takes its status."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _vacate_crashed(slot: ActorSlot, pid: int, code: int, monitor_words: str) -> None:
    """Vacate the place of an actor that ended with exit status `code`.

    `monitor_words` say how the pulse monitor has ended it; "" if it has not.
    """
    end = describe_end(code)
    words = monitor_words
    environment_may_have = code != FAILED and -code not in OTHERS_SIGNALS
    if not words and environment_may_have:
        words = end
    slot.vacate(words)
    log.warning("actor %d %s: replaced", pid, end)


def _check_crashes(times: list[float], most: int, last_end: str) -> None:
    """Forget crashes of more than a minute ago; raise FleetError at more than `most` others."""
    now = time.monotonic()
    times[:] = [crash for crash in times if crash > now - 60]
    if len(times) > most:
        raise FleetError(
            f"{len(times)} actors crashed within a minute, and the last one {last_end}: "
            "see actors.log"
        )


def fork(body: Callable[[ActorSlot], None], slot: ActorSlot) -> int:
    """Run `body` in a child that dies with this process; return its pid."""
    die_with_parent = dying_with_parent()
    pid = os.fork()
    if pid:
        return pid
    status = FAILED
    try:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        reseed()
        # Ctrl-C, or a terminal that goes, is the parent's to handle.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        faulthandler.enable()
        body(slot)
        status = ENDED
    except ControllerLost as lost:
        log.warning("actor %d: %s", os.getpid(), lost)
        status = LOST
    except BaseException:
        log.exception("actor %d failed", os.getpid())
    finally:
        with contextlib.suppress(BaseException):  # code of an environment may have closed them
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


async def _act(
    endpoint: str,
    episodes: int,
    welcome: Welcome,
    environments: Environments,
    prompter: Prompter,
    keys: CurveKeys | None,
    slot: ActorSlot,
) -> bool:
    """Be an actor until the job is over, or SIGTERM comes; returns whether it came.

    Either way episodes that are played are broken off, and close what they hold open.
    """
    context = zmq.asyncio.Context()
    beating = asyncio.create_task(slot.pulse.beat())
    try:
        actor = Actor(context, endpoint, welcome, environments, prompter, keys, slot=slot)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, actor.stop)
        await actor.run(episodes)
        return actor.is_stopped
    finally:
        beating.cancel()
        # And not term, which would wait for the sockets of an actor that could not begin.
        context.destroy(linger=0)
