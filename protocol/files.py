"""How many sockets a process may have open."""

from __future__ import annotations

import resource


def allow_many_files() -> None:
    """As many files and sockets as the system lets this process ask for. The usual 1,024 are fewer than what thousands of turns at once
    (a connection to an engine each) and hundreds of actors take; a turn without a connection would be an episode lost."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
