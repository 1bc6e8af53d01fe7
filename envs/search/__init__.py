"""Question answering with a search engine, as in Search-R1.

Questions about real facts take two or three of them; a search asks BM25 in this process, or a
server.

The facts in `facts.json` are taken by `extract` from the CIA World Factbook, mendeleev and
airportsdata.

    facts.json -> facts, relations -> questions, index -> environment <- remote <-http-> server
                                      jsonl (the user's own) -> environment
                        actions, prompt, scoring, expert -> environment
"""
