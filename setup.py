"""The layout of the wheel; all else of it is in pyproject.toml.

Installed, everything is in one folder, `foray`, which every process of a run has first on its path.
The names of the folders here are too plain to stand beside other packages: one called `supervisor`
comes with vLLM.
"""

from setuptools import find_namespace_packages, setup

ROOMS = (
    "actors*",
    "config*",
    "controller*",
    "engine*",
    "envs*",
    "learner*",
    "protocol*",
    "recipes*",
    "supervisor*",
    "telemetry*",
)

setup(
    script_name="setup.py",  # which is not in the wheel
    packages=["foray", *(f"foray.{name}" for name in find_namespace_packages(include=ROOMS))],
    package_dir={"foray": "."},
)
