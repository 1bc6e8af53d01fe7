"""Retrieval from a server that speaks Search-R1's protocol: somebody's own, or
`envs.search.server`.

    POST /retrieve  {"queries": ["…"], "topk": 3, "return_scores": true}   or   {"query": "…", "topk": 3, "return_scores": true}
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
from envs.search.jsonl import encodable

ATTEMPT_SECONDS = 8.0
DEADLINE_SECONDS = 25.0
"""For all attempts of a query together: less than actor.step_timeout, so that the failure is told
by its cause."""

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 3.0
_REFUSED_FORM = (400, 422)
"""How servers answer a request whose form they do not know."""


class _EveryStatus(urllib.request.HTTPErrorProcessor):
    """Answers are answers, whatever their status."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


class _Route(NamedTuple):
    """How a server is reached. `named`: the proxy between, for errors; "" if there is none."""

    opener: urllib.request.OpenerDirector
    named: str


def _route(parts: SplitResult) -> _Route:
    """Through the proxy that the environment names, but straight to this machine: a proxy has a
    loopback of its own."""
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if not proxy or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return _Route(
            urllib.request.build_opener(_EveryStatus, urllib.request.ProxyHandler({})), ""
        )
    # Without the user and the password that may stand before the @.
    named = (
        f" (asked through {parts.scheme}_proxy {proxy.rpartition('@')[2].rpartition('//')[2]}; "
        f"no_proxy={host} asks it directly)"
    )
    return _Route(urllib.request.build_opener(_EveryStatus), named)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Retriever(Protocol):
    """Where passages come from. Called by several threads at the same time."""

    def passages(self, query: str, topk: int) -> list[str]:
        """The texts of the best passages, best first, at most `topk`.

        EnvironmentFailure if they cannot be had.
        """
        ...


class _Transient(Exception):
    """An attempt failed in a way that the next one may not."""


class Remote:
    """A retrieval server.

    `url` without a path means `/retrieve` there; ValueError if it is no such address.
    """

    def __init__(
        self,
        url: str,
        *,
        attempt_seconds: float = ATTEMPT_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError(
                f"search.url: {url!r} is not an address like http://host:8000/retrieve"
            )
        self._url = url if parts.path.strip("/") else parts._replace(path="/retrieve").geturl()
        self._route = _route(parts)
        self._attempt_seconds = attempt_seconds
        self._deadline_seconds = deadline_seconds
        self._takes_one = False
        """Whether the server wants `query` instead of `queries`; found out by asking."""

    def passages(self, query: str, topk: int) -> list[str]:
        """See `Retriever`.

        Server errors, refused and slow connections are tried again until the deadline; all else
        fails at once.
        """
        deadline = time.monotonic() + self._deadline_seconds
        pause = _FIRST_PAUSE
        cause = None
        while True:
            try:
                return self._ask(query, topk, deadline)
            except _Transient as error:
                if cause is None or time.monotonic() < deadline:
                    # an attempt that the deadline cut short says less than the one before it
                    cause = error
                wait = pause * random.uniform(
                    0.5, 1
                )  # many actors lose their server at the same moment
                if time.monotonic() + wait >= deadline:
                    raise EnvironmentFailure(
                        f"{self._url} did not answer within {self._deadline_seconds:g} s: "
                        f"{cause}{self._route.named}"
                    ) from None
                time.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _ask(self, query: str, topk: int, deadline: float) -> list[str]:
        """In the form that the server took last, and in the other one if it refuses that."""
        for one in (self._takes_one, not self._takes_one):
            body = {"query": query} if one else {"queries": [query]}
            status, answer = self._post(body | {"topk": topk, "return_scores": True}, deadline)
            if status == 200:
                self._takes_one = one
                return self._texts(answer)[:topk]
            refusal = (
                f"{self._url} answered {status}: "
                f"{answer[:200].decode(errors='replace')}{self._route.named}"
            )
            if status not in _REFUSED_FORM:
                break
        raise EnvironmentFailure(refusal)

    def _post(self, body: dict[str, Any], deadline: float) -> tuple[int, bytes]:
        """(status, body) of an answer that is final. _Transient if there is none, or one that may
        be better next time."""
        until = min(deadline, time.monotonic() + self._attempt_seconds)
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._route.opener.open(
                request, timeout=max(0.01, until - time.monotonic())
            ) as answer:
                parts = []
                # The timeout is for each read: a server that drips is stopped here.
                while part := answer.read1(1 << 16):
                    parts.append(part)
                    if time.monotonic() > until:
                        raise _Transient("the answer took too long")
                if answer.length:  # read1 does not say so
                    raise _Transient("the answer was cut off")
        except urllib.error.URLError as error:
            raise _Transient(str(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(str(error) or type(error).__name__) from None
        if answer.status >= 500 or answer.status == 429:
            raise _Transient(f"{answer.status} {answer.reason}")
        return answer.status, b"".join(parts)

    def _texts(self, answer: bytes) -> list[str]:
        """Out of the answer's first list, which some servers give without the list around it.

        Without scores there is no `document`.
        """
        try:
            found = json.loads(answer)["result"]
            if found and isinstance(found[0], list):
                found = found[0]
            texts = [_contents(hit.get("document", hit)) for hit in found]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EnvironmentFailure(
                f"{self._url} does not speak Search-R1's protocol; it answered "
                f"{answer[:200].decode(errors='replace')}{self._route.named}"
            ) from None
        return texts


def _contents(document: dict[str, Any]) -> str:
    """Of a document in either of the forms that corpora have."""
    text = (
        document["contents"]
        if "contents" in document
        else f"{document.get('title', '')}\n{document['text']}"
    )
    if not isinstance(text, str):
        raise TypeError
    return encodable(text)
