"""`python run.py retriever`: the in-process index for others, by Search-R1's protocol (see `envs.search.remote`)."""

from __future__ import annotations

import argparse
import json
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


class _Malformed(Exception):
    """A request that cannot be answered; the message says why."""


def make_app(index: Index) -> web.Application:
    """POST /retrieve. What is wrong with a request is answered with 400 and `{"error": …}`."""

    async def retrieve(request: web.Request) -> web.Response:
        try:
            queries, topk, scores = _read(await request.read())
        except _Malformed as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"result": [_hits(index, query, topk, scores) for query in queries]})

    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/retrieve", retrieve)
    return app


def _hits(index: Index, query: str, topk: int, scores: bool) -> list[dict[str, Any]]:
    hits = []
    for number, score in index.search(query, topk):
        document = {"id": str(number), "contents": index.texts[number]}
        hits.append({"document": document, "score": score} if scores else document)
    return hits


def _read(body: bytes) -> tuple[list[str], int, bool]:
    """(queries, topk, return_scores) of a request."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict) or ("query" in fields) == ("queries" in fields):
        raise _Malformed('the body must be an object with either "query" or "queries"')
    queries = [fields["query"]] if "query" in fields else fields["queries"]
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _Malformed('"query" must be a text, "queries" a list of texts')
    if len(queries) > MAX_QUERIES:
        raise _Malformed(f'"queries" are {len(queries)}, more than {MAX_QUERIES}')
    topk = DEFAULT_TOPK if fields.get("topk") is None else fields["topk"]
    if not isinstance(topk, int) or isinstance(topk, bool) or not 1 <= topk <= MAX_TOPK:
        raise _Malformed(f'"topk" must be a whole number from 1 to {MAX_TOPK}')
    scores = fields.get("return_scores", False)
    if not isinstance(scores, bool):
        raise _Malformed('"return_scores" must be true or false')
    return queries, topk, scores


def main(arguments: Sequence[str]) -> int:
    """`run.py retriever`: serve until Ctrl-C or SIGTERM. Exit status 2 if that is impossible."""
    parser = argparse.ArgumentParser(prog="run.py retriever", description="Serve passages by Search-R1's retrieval protocol.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--corpus", default="", help="JSONL file of passages, id and contents (default: the project's own)")
    options = parser.parse_args(arguments)
    try:
        index = Index(read_corpus(options.corpus) if options.corpus else passages())
        where = f"http://{options.host}:{options.port}/retrieve"
        started = f"{len(index.texts)} passages at {where}; Ctrl-C ends it"
        web.run_app(make_app(index), host=options.host, port=options.port, access_log=None, print=lambda *_: print(started, flush=True))
    except (OSError, OverflowError) as error:
        print(f"error: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
