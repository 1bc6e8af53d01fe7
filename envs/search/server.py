"""`python run.py retriever`: the in-process index for others, by Search-R1's protocol (see
`envs.search.remote`)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from envs.search.facts import passages
from envs.search.index import Index
from envs.search.jsonl import read_corpus

DEFAULT_TOPK = 3
MAX_TOPK = 1000
MAX_QUERIES = 4096
MAX_BODY = 16 << 20


MAX_ANSWER_BYTES = 64 << 20
"""Of the passages in an answer."""

_QUERIES_AT_ONCE = 8
"""Queries of a request that are answered before it is another request's turn."""


class _Refused(Exception):
    """A request that is not answered, with an HTTP status; the message says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def make_app(index: Index, ids: Sequence[str | int] | None = None) -> web.Application:
    """POST /retrieve.

    What is wrong with a request is answered with 400, or 413 for one with too large an answer, and
    `{"error": …}`.

    `ids` are those of the index's passages; their numbers if there are none.
    """
    served = _Passages(index, ids)
    # Requests take turns, first come, first served: a light one does not wait for the whole of a
    # heavy one.
    turn = asyncio.Lock()

    async def retrieve(request: web.Request) -> web.Response:
        try:
            queries, topk, scores = await asyncio.to_thread(_read, await request.read())
            parts: list[str] = []
            size_bytes = 0
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                some = queries[start : start + _QUERIES_AT_ONCE]
                async with turn:
                    found = await asyncio.to_thread(served.answers, some, topk, scores)
                parts += found
                size_bytes += sum(map(len, found))
                if size_bytes > MAX_ANSWER_BYTES:
                    limit = f"{MAX_ANSWER_BYTES >> 20} MiB"
                    raise _Refused(
                        f'the answer is larger than {limit}: ask fewer "queries" at once, or a smaller "topk"',
                        413,
                    )
        except _Refused as error:
            return web.json_response({"error": str(error)}, status=error.status)
        return web.Response(
            text=f'{{"result": [{", ".join(parts)}]}}', content_type="application/json"
        )

    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/retrieve", retrieve)
    return app


class _Passages:
    """An index, and what its passages are called."""

    def __init__(self, index: Index, ids: Sequence[str | int] | None) -> None:
        self._index = index
        self._ids = ids

    def answers(self, queries: Sequence[str], topk: int, scores: bool) -> list[str]:
        """The list of hits of each query, as JSON in ASCII."""
        return [
            json.dumps(
                [
                    self._hit(number, score, scores)
                    for number, score in self._index.search(query, topk)
                ]
            )
            for query in queries
        ]

    def _hit(self, number: int, score: float, scores: bool) -> dict[str, Any]:
        identity = str(number) if self._ids is None else self._ids[number]
        document = {"id": identity, "contents": self._index.texts[number]}
        return {"document": document, "score": score} if scores else document


def _read(body: bytes) -> tuple[list[str], int, bool]:
    """(queries, topk, return_scores) of a request."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict) or ("query" in fields) == ("queries" in fields):
        raise _Refused('the body must be an object with either "query" or "queries"')
    queries = [fields["query"]] if "query" in fields else fields["queries"]
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _Refused('"query" must be a text, "queries" a list of texts')
    if len(queries) > MAX_QUERIES:
        raise _Refused(f'"queries" are {len(queries)}, more than {MAX_QUERIES}')
    topk = DEFAULT_TOPK if fields.get("topk") is None else fields["topk"]
    if not isinstance(topk, int) or isinstance(topk, bool) or not 1 <= topk <= MAX_TOPK:
        raise _Refused(f'"topk" must be a whole number from 1 to {MAX_TOPK}')
    scores = fields.get("return_scores", False)
    if not isinstance(scores, bool):
        raise _Refused('"return_scores" must be true or false')
    return queries, topk, scores


async def _end_when_the_terminal_goes(app: web.Application) -> None:
    """Have SIGHUP end the server between two callbacks, as aiohttp has it with Ctrl-C: raised
    inside one, it would be a request's error. Under nohup it is ignored, and stays so."""
    del app
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _exit)


def _exit() -> None:
    raise web.GracefulExit


def _listen(host: str, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Sockets that listen at every address of `host`, until `stack` closes them.

    With port 0 all have the port that the first one got.
    """
    found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address[0]) for family, *_, address in found):
        listener = stack.enter_context(socket.create_server((address, port), family=family))
        port = listener.getsockname()[1]
        sockets.append(listener)
    return sockets


def main(arguments: Sequence[str]) -> int:
    """`run.py retriever`: serve until Ctrl-C or SIGTERM. Exit status 2 if that is impossible."""
    parser = argparse.ArgumentParser(
        prog="run.py retriever", description="Serve passages by Search-R1's retrieval protocol."
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="port to listen on; 0: any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--corpus",
        default="",
        help="JSONL file of passages, id and contents (default: the project's own)",
    )
    options = parser.parse_args(arguments)
    try:
        ids = None
        if options.corpus:
            corpus = read_corpus(options.corpus)
            index = Index(corpus.texts)
            ids = corpus.ids
        else:
            index = Index(passages())
        app = make_app(index, ids)
        app.on_startup.append(_end_when_the_terminal_goes)
        with contextlib.ExitStack() as stack:
            sockets = _listen(options.host, options.port, stack)
            where = f"http://{options.host}:{sockets[0].getsockname()[1]}/retrieve"
            started = f"{len(index.texts)} passages at {where}; Ctrl-C ends it"
            web.run_app(
                app, sock=sockets, access_log=None, print=lambda *_: print(started, flush=True)
            )
    except (OSError, OverflowError) as error:
        print(f"error: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
