"""`python run.py keys` and `python run.py actor`: other machines join a run."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from urllib.parse import urlsplit

from config import ConfigError


def make_keys(arguments: list[str]) -> int:
    """Make keys for the machines that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="run.py keys",
        description=(
            "Keys for a run that other machines may join: run.py --security.keys DIR "
            "--controller.host 0.0.0.0. Each machine gets a directory DIR/NAME, to be copied to it "
            "for run.py actor --keys; DIR/allowed has the public keys of those that may join."
        ),
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="where the keys are, or will be")
    parser.add_argument(
        "names",
        nargs="*",
        default=["actor"],
        metavar="NAME",
        help="machines to make keys for (default: actor)",
    )
    options = parser.parse_args(arguments)
    from protocol import security

    try:
        for name in options.names:
            for path in security.make_keys(options.dir, name):
                print(f"made {path}")
    except security.KeysError as error:
        raise ConfigError(str(error)) from None
    return 0


def run_actors(arguments: list[str]) -> int:
    """Play episodes for a job that runs elsewhere, until it ends."""
    options = _parse_actor_options(arguments)
    from actors.fleet import FleetError, run_fleet
    from protocol.security import KeysError, load_keys

    logging.getLogger("actors").setLevel(logging.INFO)
    try:
        run_fleet(
            options.connect, options.actors, options.episodes, options.wait, load_keys(options.keys)
        )
    except KeysError as error:
        raise ConfigError(f"--keys: {error}") from None
    except FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse_actor_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py actor", description="Play episodes for a job that runs elsewhere."
    )
    parser.add_argument(
        "--connect",
        required=True,
        metavar="tcp://HOST:PORT",
        help="where the job's controller listens (controller.port)",
    )
    parser.add_argument(
        "--actors", type=int, default=1, metavar="N", help="actor processes here (default 1)"
    )
    parser.add_argument(
        "--episodes", type=int, default=1, metavar="N", help="episodes of each at once (default 1)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds to wait for the controller (default 30)",
    )
    parser.add_argument(
        "--keys",
        default="",
        metavar="DIR",
        help="this machine's keys, which run.py keys made where the job runs",
    )
    options = parser.parse_args(arguments)
    if options.actors < 1 or options.episodes < 1:
        raise ConfigError("--actors and --episodes must be at least 1")
    _check_connect(options)
    return options


def _check_connect(options: argparse.Namespace) -> None:
    """Raise ConfigError for an address that is none, or that no job can have without keys."""
    from protocol.security import is_loopback
    from supervisor.endpoints import check_ipv4

    if not _is_tcp_address(options.connect):
        raise ConfigError(f"--connect: {options.connect} is no address; write tcp://HOST:PORT")
    check_ipv4("--connect", urlsplit(options.connect).hostname)
    if not options.keys and not is_loopback(options.connect):
        raise ConfigError(
            "--keys: another machine's job admits those alone who have a key; run.py keys makes "
            "them where the job runs"
        )


def _is_tcp_address(text: str) -> bool:
    """Tell whether a text is tcp://HOST:PORT."""
    try:
        parts = urlsplit(text)
        has_host_and_port = bool(parts.hostname) and parts.port is not None
    except ValueError:  # a port that is no number
        return False
    return parts.scheme == "tcp" and has_host_and_port and not parts.path
