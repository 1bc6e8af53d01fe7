"""Fixtures of tests that are alike for the fake engine and vLLM."""

from tests.fixtures.turns import bench  # noqa: F401
