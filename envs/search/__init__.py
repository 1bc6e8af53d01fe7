"""Question answering with a search engine, as in Search-R1: real facts, questions that take two or
three of them, BM25 or a server.

The facts in `facts.json` are taken by `extract` from the CIA World Factbook, mendeleev and
airportsdata.

    facts.json -> facts, relations -> questions, index -> environment <- actions, prompt, scoring, expert
                                      jsonl (the user's own)          <- remote <-http-> server
"""
