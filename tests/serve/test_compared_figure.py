"""The picture of a comparison: what stands where, of arms over a number and of arms in rows."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tomoglot.serve.compared_figure import compared_figure, draw_compared, place_of
from tomoglot.tasks.task import SCRATCH, Score, TaskResult


def result(arms, *, shares=("macro, 10 % of the labels", "macro, 100 % of the labels"), simulated=True):
    scores = tuple(
        Score(
            name=share, value=0.5 + 0.05 * at, low=0.45 + 0.05 * at, high=0.56 + 0.05 * at, subjects=60,
            prevalence=0.2, metric=metric, arm=arm,
        )
        for share in shares for at, arm in enumerate(arms) for metric in ("auroc", "f1")
    )  # fmt: skip
    return TaskResult(
        task="compare-abnormality", split="test", subjects=60, studies=60, scores=scores, simulated=simulated
    )


@pytest.mark.parametrize(
    ("arm", "place"),
    [("mae@500", ("mae", 500.0)), ("mae", ("mae", None)), ("a@b@2", ("a@b", 2.0)), ("mae@x", ("mae@x", None)),
     ("@5", ("@5", None)), ("mae@0", ("mae@0", None)), ("from scratch", ("from scratch", None))],
)  # fmt: skip
def test_a_name_says_its_place_on_a_line(arm, place):
    assert place_of(arm) == place


def test_arms_with_numbers_are_lines_in_order_and_others_are_level():
    figure = compared_figure(result(["mae@2000", "mae@500", "brainmvp@1000", SCRATCH]))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "macro, 10 % of the labels",
        "macro, 100 % of the labels",
    ]
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["mae"].get_xdata(), [500, 2000])
    np.testing.assert_allclose(lines["mae"].get_ydata(), [0.55, 0.5])
    np.testing.assert_allclose(lines["brainmvp"].get_xdata(), [1000])
    assert set(lines[SCRATCH].get_ydata()) == {0.65} and lines[SCRATCH].get_linestyle() != "-"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["500", "1,000", "2,000"]
    band = [patch for patch in axes.patches if to_hex(patch.get_facecolor()) == to_hex(lines[SCRATCH].get_color())]
    assert [round(edge, 3) for edge in band[0].get_bbox().intervaly] == [0.6, 0.71]
    assert "auroc" in axes.get_ylabel() and "60" in axes.get_ylabel()


def test_arms_without_numbers_are_rows_in_their_order():
    figure = compared_figure(result(["ours", "other", SCRATCH], shares=("macro",)))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "other", SCRATCH]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose([point.get_xdata()[0] for point in points], [0.5, 0.55, 0.6])
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first arm on top"


def test_simulated_results_say_so_and_the_file_is_a_picture(tmp_path):
    said = [compared_figure(result(["a", SCRATCH], simulated=kind)).get_supxlabel() for kind in (True, False)]
    assert said[0].startswith("SIMULATED") and "SIMULATED" not in said[1]
    path = draw_compared(result(["a@1", SCRATCH]), tmp_path / "compared.png")
    assert path.read_bytes().startswith(b"\x89PNG")
