"""Environments.

`base` says what one is, `registry` makes one by name, `view` keeps what an agent has been shown.
"""
