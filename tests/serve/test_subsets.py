"""The picture of the subsets: a row a subset in a readable order, and the worst one named."""

import itertools

import pytest

from tomoglot.serve.report import _task
from tomoglot.serve.subsets import draw_subsets, mean_score, ordered, subsets_figure, subsets_picture, worst_subset
from tomoglot.tasks.task import Score, SubsetScore, TaskResult

SIX = ("dwi", "flair", "pd", "t1c", "t1w", "t2w")


def result(names: tuple[str, ...] = ("flair", "t1c", "t1w", "t2w"), *, metric: str = "dice") -> TaskResult:
    rows = []
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            value = 0.25 + 0.1 * count + 0.05 * ("flair" in chosen) - 0.01 * names.index(chosen[0])
            score = Score(
                name="whole", value=value, low=value - 0.08, high=value + 0.06, subjects=40, prevalence=1, metric=metric
            )
            rows.append(SubsetScore(sequences=chosen, score=score, left_out=0))
    return TaskResult(
        task="segmentation", split="test", simulated=True, subjects=40, studies=40, subsets=tuple(reversed(rows))
    )


def test_rows_go_by_size_and_then_from_best_to_worst() -> None:
    rows = ordered(result().subsets)
    assert [len(row.sequences) for row in rows] == sorted(len(row.sequences) for row in rows)
    assert rows[0].sequences == ("flair",) and rows[-1].sequences == ("flair", "t1c", "t1w", "t2w")
    for one, other in itertools.pairwise(rows):
        assert len(one.sequences) < len(other.sequences) or one.score.value >= other.score.value


def test_the_worst_is_the_lowest_but_for_what_is_better_low() -> None:
    assert worst_subset(result().subsets).sequences == ("t2w",)
    assert len(worst_subset(result(metric="hd95_mm").subsets).sequences) == 4


def test_a_row_holds_a_dot_a_sequence_read_and_one_score_with_its_interval() -> None:
    found = result()
    matrix, scores = subsets_figure(found).axes
    names = [label.get_text() for label in matrix.get_xticklabels()]
    for at, row in enumerate(ordered(found.subsets)):
        here = [line for line in matrix.lines if line.get_marker() == "o" and {*line.get_ydata()} == {at}]
        read = max(here, key=lambda line: line.get_markersize())
        assert [names[column] for column in read.get_xdata()] == list(row.sequences)
        drawn = [list(line.get_xdata()) for line in scores.lines if {*line.get_ydata()} == {at}]
        assert [row.score.low, row.score.high] in drawn and [row.score.value] in drawn
    assert f"{mean_score(found.subsets):.3f}" in scores.get_title(loc="right")
    assert "simulated" in scores.get_xlabel()


@pytest.mark.parametrize("names", [SIX[1:5], SIX])
def test_the_picture_is_a_file_and_a_part_of_the_page(names, tmp_path) -> None:
    found = result(names)
    assert draw_subsets(found, tmp_path / "subsets.png").read_bytes().startswith(b"\x89PNG")
    shown = _task(found)["matrix"]
    assert shown.source.startswith("data:image/png;base64,") and f"each of {2 ** len(names) - 1} subsets" in shown.words
    assert "worst" in shown.words and f"{names[-1]} alone" in shown.words


def test_a_result_without_subsets_has_no_picture(tmp_path) -> None:
    nothing = result().but(subsets=())
    assert subsets_picture(nothing) is None and _task(nothing)["matrix"] is None
    with pytest.raises(ValueError, match="not scored by subsets"):
        draw_subsets(nothing, tmp_path / "none.png")
