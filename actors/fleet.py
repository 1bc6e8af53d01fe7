"""A fork server: loads environment and tokenizer once, forks N actors that share them, replaces those that crash.

The parent never opens a ZeroMQ context while children may be forked from it (its threads would not survive the fork), so it
asks the controller for the welcome in a context that is gone before the first fork.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import zmq
import zmq.asyncio

from actors.actor import Actor, ControllerLost
from envs.base import EnvironmentFailure
from envs.play import close_episode, start_episode
from envs.registry import make_environment
from protocol.codec import BadFrame, decode, encode
from protocol.lifetime import dying_with_parent
from protocol.messages import Hello, Welcome
from protocol.prompting import Prompter
from protocol.security import Keys, connect

log = logging.getLogger(__name__)

LOST = 3
"""Exit status of an actor that has lost its controller."""

ANSWERS_WITHIN = 5.0
"""Seconds in which a controller answers that one actor takes for lost."""

CRASHES_PER_MINUTE = 3
"""Times the fleet's size that actors may crash within a minute before the fleet gives up."""


class FleetError(RuntimeError):
    """The fleet cannot work; the message says why and what to change."""


def run_fleet(endpoint: str, actors: int, episodes: int, connect_seconds: float, keys: Keys | None = None) -> None:
    """Fork `actors` actors of the job at `endpoint` and keep that many alive until the job is over.

    When the controller is lost they wait for it, or for the one of a run that is resumed there, as long as at the beginning.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while _play(endpoint, actors, episodes, connect_seconds, keys):
        log.warning("the controller at %s is lost: looking for it for %g s", endpoint, connect_seconds)


def _play(endpoint: str, actors: int, episodes: int, connect_seconds: float, keys: Keys | None) -> bool:
    """Until the job is over, or its controller lost, which is returned."""
    welcome = fetch_welcome(endpoint, connect_seconds, keys)
    try:
        environment = make_environment(welcome.environment, **welcome.environment_settings)
        close_episode(start_episode(environment, "train", 0, 0))  # loads what the environment loads lazily, before the forks
    except (ValueError, EnvironmentFailure) as error:
        raise FleetError(f"{welcome.environment} cannot be played on this machine: {error}") from None
    prompter = Prompter(welcome.tokenizer_json, welcome.chat_template)
    gc.collect()
    gc.freeze()  # the shared pages are not touched by the children's collector

    def body() -> None:
        asyncio.run(_act(endpoint, episodes, welcome, environment, prompter, keys))

    def is_there() -> bool:
        try:
            return fetch_welcome(endpoint, ANSWERS_WITHIN, keys).session == welcome.session
        except FleetError:
            return False

    return supervise([body] * actors, is_there)


def fetch_welcome(endpoint: str, seconds: float, keys: Keys | None = None) -> Welcome:
    """Ask the controller at `endpoint` how to play. Raises FleetError if it does not answer in time."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as connection:
        connection.set(zmq.LINGER, 0)
        connect(connection, endpoint, keys)
        connection.send(encode(Hello(host=os.uname().nodename, pid=os.getpid())))
        if not connection.poll(int(seconds * 1000)):
            raise FleetError(f"no controller answers at {endpoint} after {seconds:g} s; does the job run? Are --connect and --keys right?")
        try:
            answer = decode(connection.recv())
        except BadFrame as error:
            raise FleetError(f"what answers at {endpoint} is no controller of this version: {error}") from None
        if not isinstance(answer, Welcome):
            raise FleetError(f"the controller at {endpoint} sent {type(answer).__name__} instead of a welcome")
        return answer


def supervise(bodies: list, is_there: Callable[[], bool]) -> bool:
    """Run every body in a forked child; replace a child that crashed, or has lost the controller while that `is_there`; return when all
    have ended by themselves, or the controller is lost, which is returned: the others are ended then.

    Raises FleetError when they crash so often that replacing them is pointless.
    """
    children = {fork(body): body for body in bodies}
    crashes: list[float] = []
    try:
        while children:
            pid, status = os.wait()
            body = children.pop(pid, None)
            if body is None or os.waitstatus_to_exitcode(status) == 0:
                continue
            if os.waitstatus_to_exitcode(status) == LOST:
                if not is_there():
                    return True
                log.warning("actor %d alone had lost the controller: replaced", pid)
                children[fork(body)] = body
                continue
            now = time.monotonic()
            crashes = [t for t in crashes if t > now - 60] + [now]
            if len(crashes) > CRASHES_PER_MINUTE * len(bodies):
                raise FleetError(f"{len(crashes)} actors crashed within a minute; the last one with status {status}: see actors.log")
            log.warning("actor %d ended with status %d: replaced", pid, status)
            children[fork(body)] = body
        return False
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)  # one that is stopped, too; they have nothing to put in order
        for pid in children:
            os.waitpid(pid, 0)


def fork(body) -> int:
    """Run `body` in a child that dies with this process; returns its pid."""
    die_with_parent = dying_with_parent()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
        body()
        status = 0
    except ControllerLost as lost:
        log.warning("actor %d: %s", os.getpid(), lost)
        status = LOST
    except BaseException:
        log.exception("actor %d failed", os.getpid())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


async def _act(endpoint: str, episodes: int, welcome: Welcome, environment, prompter: Prompter, keys: Keys | None) -> None:
    context = zmq.asyncio.Context()
    try:
        await Actor(context, endpoint, welcome, environment, prompter, keys).run(episodes)
    finally:
        context.destroy(linger=0)  # and not term, which would wait for the sockets of one that could not begin
