"""Keys, and what sockets let in: real ZeroMQ connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import MAX_FRAME
from protocol.security import (
    CurveKeys,
    KeysError,
    admit_key_holders,
    bind,
    connect,
    is_loopback,
    load_keys,
    make_keys,
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", "host")
    return tmp_path / "keys"


@asynccontextmanager
async def listening(
    keys: CurveKeys | None, domain: str
) -> AsyncIterator[tuple[zmq.asyncio.Socket, str]]:
    context = zmq.asyncio.Context()
    async with admit_key_holders(context, keys):
        with context.socket(zmq.ROUTER) as router:
            bind(router, "tcp://127.0.0.1:*", keys, domain)
            yield router, router.get(zmq.LAST_ENDPOINT).decode()
    context.destroy(linger=0)


async def arrives(
    router: zmq.asyncio.Socket, endpoint: str, keys: CurveKeys | None, frame: bytes = b"word"
) -> bool:
    """Tell whether a word from a new connection comes through.

    That one does not is known once one from the run's own has.
    """
    context = zmq.asyncio.Context()
    with context.socket(zmq.DEALER) as dealer:
        dealer.set(zmq.LINGER, 0)
        monitor = dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
        )
        connect(dealer, endpoint, keys)
        await dealer.send(frame)
        hears = asyncio.ensure_future(router.recv_multipart())
        ends = asyncio.ensure_future(_refused(monitor))
        await asyncio.wait({hears, ends}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        heard = hears.done()
        for task in (hears, ends):
            task.cancel()
        dealer.disable_monitor()
    context.destroy(linger=0)
    return heard


async def _refused(monitor: zmq.asyncio.Socket) -> None:
    from zmq.utils.monitor import parse_monitor_message

    while (
        parse_monitor_message(await monitor.recv_multipart())["event"]
        == zmq.EVENT_HANDSHAKE_SUCCEEDED
    ):
        pass


async def test_the_runs_own_and_those_that_may_play_are_let_in_where_they_may(made: Path) -> None:
    run = load_keys(str(made))
    host = load_keys(str(made / "host"))
    async with listening(run, "actors") as (router, endpoint):
        assert await arrives(router, endpoint, run) and await arrives(router, endpoint, host)
    async with listening(run, "run") as (router, endpoint):
        assert await arrives(router, endpoint, run)
        assert not await arrives(router, endpoint, host), (
            "an actor may not speak as the learner does"
        )


async def test_a_stranger_is_refused_with_keys_of_its_own_or_none(
    made: Path, tmp_path: Path
) -> None:
    make_keys(tmp_path / "others", "host")
    stranger = load_keys(str(tmp_path / "others" / "host"))
    run = load_keys(str(made))
    async with listening(run, "actors") as (router, endpoint):
        assert not await arrives(router, endpoint, stranger._replace(run=run.run)), (
            "it knows the run's public key"
        )
        assert not await arrives(router, endpoint, stranger)
        assert not await arrives(router, endpoint, None)
        assert await arrives(router, endpoint, run)


async def test_a_machine_whose_key_is_removed_is_refused_from_then_on(made: Path) -> None:
    run = load_keys(str(made))
    host = load_keys(str(made / "host"))
    async with listening(run, "actors") as (router, endpoint):
        assert await arrives(router, endpoint, host)
        (made / "allowed" / "host.key").unlink()
        assert not await arrives(router, endpoint, host)


@pytest.mark.parametrize("content", ["", "public-key", 'public-key = "half of i', b"\xff\x00"])
async def test_a_bad_file_beside_a_good_one_admits_nobody_and_keeps_nobody_out(
    made: Path, content: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run = load_keys(str(made))
    host = load_keys(str(made / "host"))
    (made / "allowed" / "bad.key").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    async with listening(run, "actors") as (router, endpoint):
        assert await arrives(router, endpoint, host)
        (made / "allowed" / "host.key").unlink()
        assert not await arrives(router, endpoint, host), "refused, and not left without an answer"
        assert not await arrives(router, endpoint, host)
        assert await arrives(router, endpoint, run)
    assert caplog.text.count("bad.key admits nobody") == 1


async def test_without_a_directory_of_keys_the_runs_own_are_let_in_alone(made: Path) -> None:
    run = load_keys(str(made))
    host = load_keys(str(made / "host"))
    (made / "allowed" / "host.key").unlink()
    (made / "allowed").rmdir()
    async with listening(run, "actors") as (router, endpoint):
        assert not await arrives(router, endpoint, host)
        assert await arrives(router, endpoint, run)


async def test_without_a_gatekeeper_nobody_comes_in(made: Path) -> None:
    run = load_keys(str(made))
    context = zmq.asyncio.Context()
    with context.socket(zmq.ROUTER) as router:
        bind(router, "tcp://127.0.0.1:*", run, "actors")
        assert not await arrives(router, router.get(zmq.LAST_ENDPOINT).decode(), run)
    context.destroy(linger=0)


async def test_a_frame_larger_than_any_message_ends_its_connection() -> None:
    async with listening(None, "run") as (router, endpoint):
        assert not await arrives(router, endpoint, None, bytes(MAX_FRAME + 1))
        assert await arrives(router, endpoint, None)


def test_keys_that_others_can_read_are_refused(made: Path) -> None:
    (made / "run.key_secret").chmod(0o644)
    with pytest.raises(KeysError, match="chmod 600"):
        load_keys(str(made))


def test_missing_keys_are_refused_naming_the_command(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=f"run.py keys {tmp_path}"):
        load_keys(str(tmp_path))


@pytest.mark.parametrize("name", ["run", "allowed", "..", "a/b", ""])
def test_a_machine_cannot_be_called(name: str, tmp_path: Path) -> None:
    with pytest.raises(KeysError):
        make_keys(tmp_path, name)


def test_a_second_machine_gets_keys_of_its_own_for_the_same_run(made: Path) -> None:
    make_keys(made, "other")
    first, second, run = (load_keys(str(made / name)) for name in ("host", "other", ""))
    assert (
        first.run == second.run == run.public
        and len({first.public, second.public, run.public}) == 3
    )
    with pytest.raises(KeysError, match="exists"):
        make_keys(made, "other")


@given(st.ip_addresses(v=4))
def test_an_address_is_of_this_machine_alone_exactly_when_it_begins_with_127(address) -> None:
    assert is_loopback(f"tcp://{address}:5000") == str(address).startswith("127.")


@pytest.mark.parametrize(
    ("endpoint", "alone"),
    [
        ("http://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://*:1", False),
        ("tcp://node:1", False),
    ],
)
def test_names_of_this_machine(endpoint: str, alone: bool) -> None:
    assert is_loopback(endpoint) is alone
