"""The picture of a run."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from supervisor.cli.main import main
from telemetry.analysis.curve import SMOOTHING, curves, svg

METRICS = [
    {"kind": "evaluation", "update": 0, "success": 0.25},
    *({"kind": "update", "update": n, "success": float(n % 2)} for n in range(1, 11)),
    {"kind": "evaluation", "update": 10, "success": 0.75},
    {"kind": "evaluation", "update": 10, "success": None},
]


def test_training_is_averaged_and_evaluations_are_not():
    training, held_out = curves(METRICS)
    assert training[-1] == (10, sum(n % 2 for n in range(11 - SMOOTHING, 11)) / SMOOTHING)
    assert held_out == [(0, 0.25), (10, 0.75)]


def test_the_picture_has_a_dot_for_each_evaluation():
    assert svg({"run": curves(METRICS)}).count("<circle") == 2


def test_each_run_is_in_the_picture_whatever_it_is_called():
    picture = svg({f"<a&b>/{n}": curves(METRICS) for n in range(5)})
    assert [
        title.text
        for title in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}title")
    ][-1] == "<a&b>/4: 75.0%"


def test_svg_names_several_runs_in_their_colors_and_labels_updates():
    """The picture has ticks of updates, and a legend where there are several runs."""
    texts = [
        (text.text, text.get("fill"))
        for text in ElementTree.fromstring(
            svg({name: curves(METRICS) for name in ("a", "b")})
        ).iter("{http://www.w3.org/2000/svg}text")
    ]
    colors = dict(texts)
    assert colors["a"] != colors["b"] and {"0", "10", "updates"} <= set(colors)
    assert ">a<" not in svg({"a": curves(METRICS)})


def test_a_run_without_updates_is_a_picture_too():
    assert svg({"run": ([], [])}).endswith("</svg>")


def test_curve_command_writes_a_picture_of_each_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"kind": "evaluation", "update": 0, "success": 0.5, "wall_seconds": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    output = tmp_path / "picture" / "curve.svg"
    assert main(["curve", str(tmp_path), "-o", str(output)]) == 0
    assert output.read_text().startswith("<svg") and "wrote" in capsys.readouterr().out
    assert main(["curve", str(tmp_path / "absent")]) == 2
    assert "is no run directory" in capsys.readouterr().err
