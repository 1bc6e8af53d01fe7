"""The environment of docs/guides/your-environment.md, as a package that somebody installed beside
this project."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = (Path(__file__).parent.parent / "docs" / "guides" / "your-environment.md").read_text()


def install_example(directory: Path) -> str:
    """Put it into a directory for sys.path (or PYTHONPATH, for other processes), entry point and
    all; returns its name."""
    code = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]
    entry_points = re.search(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[1]
    name = re.search(r"^(\w+) = ", entry_points, re.MULTILINE)[1]
    metadata = directory / "example-1.0.dist-info"
    metadata.mkdir(parents=True)
    (directory / "bisect_game.py").write_text(code)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    # The installer writes the tables of pyproject.toml like this.
    (metadata / "entry_points.txt").write_text(
        re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", entry_points).replace('"', "")
    )
    return name
