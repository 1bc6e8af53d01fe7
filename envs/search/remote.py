"""Retrieval from a server that speaks Search-R1's protocol: any such, or `envs.search.server`.

    POST /retrieve  {"queries": ["…"], "topk": 3, "return_scores": true}
                    or {"query": "…", "topk": 3, "return_scores": true}
    200             {"result": [[{"document": {"contents": "…"}, "score": 1.5}, …]]}

Blocking, by the standard library: a step of an environment is a blocking call in a thread of the
actor's, where an asynchronous client has no loop to run in, and a query costs the server more than
the connection costs us.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import random
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from envs.base import EnvironmentFailure
from envs.search.jsonl import replace_surrogates

ATTEMPT_TIMEOUT_S = 8.0
DEADLINE_S = 25.0
"""Time for all attempts of a query together.

It is less than actor.step_timeout, so that a failure is reported with its cause.
"""

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 3.0
_UNKNOWN_FORM = (400, 422)
"""Status codes by which servers answer a request whose form they do not know."""


class _EveryStatus(urllib.request.HTTPErrorProcessor):
    """Lets an answer of any status be an answer, no exception."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


class Route(NamedTuple):
    """The way to a server. `note`: the proxy between, for errors; "" if there is none."""

    opener: urllib.request.OpenerDirector
    note: str


def find_route(parts: SplitResult) -> Route:
    """The way through the proxy that the environment names, but straight to this machine.

    A proxy has a loopback of its own.
    """
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if not proxy or is_loopback(host) or urllib.request.proxy_bypass(host):
        direct = urllib.request.build_opener(_EveryStatus, urllib.request.ProxyHandler({}))
        return Route(direct, "")
    # Without the user and the password that may stand before the @.
    address = proxy.rpartition("@")[2].rpartition("//")[2]
    note = f" (asked through {parts.scheme}_proxy {address}; no_proxy={host} asks it directly)"
    return Route(urllib.request.build_opener(_EveryStatus), note)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Retriever(Protocol):
    """A source of passages. Several threads call it at the same time."""

    def retrieve(self, query: str, topk: int) -> list[str]:
        """The texts of the best passages, best first, at most `topk`.

        EnvironmentFailure if they cannot be had.
        """
        ...


class _Transient(Exception):
    """An attempt failed in a way that the next one may not."""


class RemoteRetriever:
    """A retrieval server.

    `url` without a path means `/retrieve` there; ValueError if it is no such address.
    """

    def __init__(
        self,
        url: str,
        *,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        try:
            parts = urlsplit(url)
            is_valid = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            )
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ValueError(
                f"env.settings.url: {url!r} is not an address like http://host:8000/retrieve"
            )
        self._url = url
        if not parts.path.strip("/"):
            self._url = parts._replace(path="/retrieve").geturl()
        self._route = find_route(parts)
        self._attempt_seconds = attempt_timeout_s
        self._deadline_seconds = deadline_s
        self._takes_one = False
        """True once the server has refused `queries` and taken `query`."""

    def retrieve(self, query: str, topk: int) -> list[str]:
        """See `Retriever`.

        Server errors, refused and slow connections are tried again until the deadline; all else
        fails at once.
        """
        deadline = time.monotonic() + self._deadline_seconds
        pause = _FIRST_PAUSE_S
        cause = None
        while True:
            try:
                return self._ask(query, topk, deadline)
            except _Transient as error:
                # An attempt that the deadline cut short says less than the one before it.
                if cause is None or time.monotonic() < deadline:
                    cause = error
                # Many actors lose their server at the same moment.
                wait = pause * random.uniform(0.5, 1)
                if time.monotonic() + wait >= deadline:
                    raise EnvironmentFailure(
                        f"{self._url} did not answer within {self._deadline_seconds:g} s: "
                        f"{cause}{self._route.note}"
                    ) from None
                time.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _ask(self, query: str, topk: int, deadline: float) -> list[str]:
        """Ask in the form that the server took last, and in the other one if it refuses that."""
        for takes_one in (self._takes_one, not self._takes_one):
            body: dict[str, Any] = {"topk": topk, "return_scores": True}
            if takes_one:
                body["query"] = query
            else:
                body["queries"] = [query]
            status, answer = self._post(body, deadline)
            if status == 200:
                self._takes_one = takes_one
                return self._read(answer)[:topk]
            refusal = f"{self._url} answered {status}: {_excerpt(answer)}{self._route.note}"
            if status not in _UNKNOWN_FORM:
                break
        raise EnvironmentFailure(refusal)

    def _post(self, body: dict[str, Any], deadline: float) -> tuple[int, bytes]:
        """(status, body) of an answer that is final.

        _Transient if there is none, or one that may be better next time.
        """
        until = min(deadline, time.monotonic() + self._attempt_seconds)
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._route.opener.open(
                request, timeout=max(0.01, until - time.monotonic())
            ) as answer:
                content = _read_body(answer, until)
        except urllib.error.URLError as error:
            raise _Transient(str(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(str(error) or type(error).__name__) from None
        if answer.status >= 500 or answer.status == 429:
            raise _Transient(f"{answer.status} {answer.reason}")
        return answer.status, content

    def _read(self, answer: bytes) -> list[str]:
        try:
            return parse_answer(answer)
        except ValueError:
            raise EnvironmentFailure(
                f"{self._url} does not speak Search-R1's protocol; it answered "
                f"{_excerpt(answer)}{self._route.note}"
            ) from None


def _read_body(answer: http.client.HTTPResponse, until: float) -> bytes:
    """All of an answer. _Transient if it is cut off, or not complete at `until`."""
    chunks = []
    # The timeout is for each read: a server that drips is stopped here.
    while True:
        chunk = answer.read1(1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
        if time.monotonic() > until:
            raise _Transient("the answer took too long")
    if answer.length:  # read1 does not say so
        raise _Transient("the answer was cut off")
    return b"".join(chunks)


def _excerpt(answer: bytes) -> str:
    """The beginning of an answer, for a message."""
    return answer[:200].decode(errors="replace")


def parse_answer(answer: bytes) -> list[str]:
    """The texts of the passages in a server's answer. ValueError if it is not of the protocol.

    They stand in the answer's first list, which some servers give without the list around it.
    Without scores there is no `document`.
    """
    try:
        hits = json.loads(answer)["result"]
        if hits and isinstance(hits[0], list):
            hits = hits[0]
        return [_text_of(hit.get("document", hit)) for hit in hits]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def _text_of(document: dict[str, Any]) -> str:
    """The text of a document in either of the forms that corpora have."""
    if "contents" in document:
        text = document["contents"]
    else:
        text = f"{document.get('title', '')}\n{document['text']}"
    if not isinstance(text, str):
        raise TypeError
    return replace_surrogates(text)
