"""For all tests."""

from hypothesis import settings

from tests.engine_fixtures import engine, policies, real_engine  # noqa: F401  fixtures: one engine for all

settings.register_profile("foray", deadline=None)  # how long an example takes says what else the machine does
settings.load_profile("foray")
