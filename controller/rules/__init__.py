"""Decisions about a turn while it is generated: pure functions and state machines.

They have no clock and no IO. The engine runs them, too.
"""
