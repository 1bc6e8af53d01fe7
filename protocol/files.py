"""Files: how many a process may have open, and what is said of one that cannot be written."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path


def allow_many_files() -> None:
    """As many files and sockets as the system lets this process ask for. The usual 1,024 are fewer than what thousands of turns at once
    (a connection to an engine each) and hundreds of actors take; a turn without a connection would be an episode lost."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def writing(final: Path, unfinished: Path, setting: str) -> Iterator[None]:
    """While `unfinished` (a file or a directory) is made, which becomes `final`. If that fails, it is removed, and whatever a library has
    raised (torch and safetensors have errors of their own for a full disk) becomes an OSError that says where, how much room there was, and
    which setting chose the place."""
    try:
        yield
    except Exception as error:
        disk = next(place for place in final.parents if place.exists())
        free = shutil.disk_usage(disk).free / 2**20
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
        raise OSError(f"{final} cannot be written: {error} ({setting}; {disk} had {free:,.1f} MB left)") from error
