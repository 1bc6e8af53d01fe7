"""WebShop without Java and spaCy: a shop in text, with its search engine, goals and reward.

The rules are those of WebShop's text mode (docs/measurements/webshop.md says what is exact and what
is not); the default catalogue is ours.

    words -> generate -> files -> products -> site (pages; ranking <- analysis <- porter)
                                  products -> goals -> reward
    all of it -> environment <- page, memory, prompt, expert <- thoughts
"""
