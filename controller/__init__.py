"""Signals, decisions and scheduling: the process between the actors, the engine and the learner."""
