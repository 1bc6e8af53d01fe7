"""Decisions about a turn while it is generated: pure functions and state machines, without clock
and IO. The engine runs them, too.
"""
