"""Names by which a ROUTER knows who is connected to it.

A peer that connects again under its name takes the place of its old connection
(ZMQ_ROUTER_HANDOVER), which may be dead without either end knowing. Whoever knows a name can do
that; so the names of actors, which the keys do not tell apart, are secrets of theirs and the run's.
"""

from __future__ import annotations

import secrets

SECRET_BYTES = 16
_BEFORE_SECRET = b"/"


def make_secret_name(shown: str) -> bytes:
    """A name that begins with `shown` and that nobody else can guess."""
    return shown.encode() + _BEFORE_SECRET + secrets.token_hex(SECRET_BYTES).encode()


def display_name(peer: bytes) -> str:
    """The part of a peer's name that logs and pages may show."""
    if is_nameless(peer):
        return f"nameless {peer.hex()}"
    return peer.partition(_BEFORE_SECRET)[0].decode(errors="replace")


def is_nameless(peer: bytes) -> bool:
    """Whether ZeroMQ has made up the name: of those that give none, and of what is left of a
    connection whose place was taken."""
    return peer[:1] in (b"\0", b"")
