"""Names by which ROUTERs know their peers."""

from __future__ import annotations

import pytest
import zmq

from protocol.router import display_name, is_nameless, make_secret_name
from protocol.security import bind, connect


def test_a_name_is_shown_without_its_secret_which_is_another_one_each_time() -> None:
    first = make_secret_name("actor-host.domain-7")
    second = make_secret_name("actor-host.domain-7")
    assert first != second and display_name(first) == display_name(second) == "actor-host.domain-7"
    assert len(first) < 256, "as long as ZeroMQ allows"


@pytest.mark.parametrize(("name", "nameless"), [(b"actor", False), (b"", True)])
def test_a_peer_that_gives_no_name_is_known_as_such(name: bytes, nameless: bool) -> None:
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        context.socket(zmq.DEALER) as dealer,
    ):
        if name:
            dealer.set(zmq.IDENTITY, name)
        bind(router, "tcp://127.0.0.1:*", None, "actors")
        connect(dealer, router.get(zmq.LAST_ENDPOINT).decode(), None)
        dealer.send(b"word")
        assert is_nameless(router.recv_multipart()[0]) is nameless


def test_peer_that_connects_again_takes_the_place_of_its_old_connection() -> None:
    """A peer that connects again under its name takes the place of its old connection."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        bind(router, "tcp://127.0.0.1:*", None, "actors")
        for word in (b"first", b"again"):
            dealer = context.socket(zmq.DEALER)
            dealer.set(zmq.IDENTITY, b"actor")
            connect(dealer, router.get(zmq.LAST_ENDPOINT).decode(), None)
            dealer.send(word)
            assert router.recv_multipart() == [b"actor", word]
        router.send_multipart([b"actor", b"answer"])
        assert dealer.recv() == b"answer"
        context.destroy(linger=0)
