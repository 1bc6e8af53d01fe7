"""The notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures import ROOT
from tests.fixtures.runs import SMALL, options

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SETTINGS = SMALL | {"env.max_turns": "2", "run.max_updates": "1", "eval.episodes": "1"}


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


@pytest.mark.slow
def test_notebook_trains_and_shows_curves_and_episodes(tmp_path: Path, small_policy: Path) -> None:
    """A run of one process stands for the default one; all other cells are as a reader has them."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = tagged(notebook, "parameters")
    run_dir = tmp_path / "run"
    settings = SETTINGS | {"model.name": str(small_policy)}
    parameters.source = (
        f"OPTIONS = {' '.join(['--serial', *options(settings)])!r}\nRUN = {str(run_dir)!r}"
    )
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    text = "".join(output.get("text", "") for output in cells["expert"].outputs)
    assert "solved" in text
    assert "'updates': 1" in cells["result"].outputs[0]["data"]["text/plain"]
    page = cells["report"].outputs[-1]["data"]["text/html"]
    assert page.startswith("<iframe srcdoc=") and "&lt;svg" in page and "t0.0" in page


def test_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
