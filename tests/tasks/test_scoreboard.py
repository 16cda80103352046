"""What is printed beside a table: findings that hardly occur, whose interval would look better than it is."""

from tomoglot.tasks.scoreboard import markdown
from tomoglot.tasks.task import SCRATCH, Score, TaskResult


def printed(*, prevalence, metric="auroc", name="mass", studies=40):
    scores = tuple(
        Score(
            name=name, value=1.0, low=1.0, high=1.0, subjects=30, studies=studies, prevalence=prevalence,
            metric=metric, arm=arm,
        )
        for arm in ("model", SCRATCH)
    )  # fmt: skip
    return markdown(TaskResult(task="stub", split="test", subjects=30, studies=studies, scores=scores))


def test_a_score_of_one_positive_study_says_that_its_interval_means_little():
    said = printed(prevalence=1 / 40)
    assert said.count("mass (1 of 40)") == 1 and "[1.000, 1.000]" in said


def test_of_the_two_classes_the_rarer_one_counts():
    assert "mass (38 of 40)" in printed(prevalence=38 / 40)
    assert "mass (9 of 40)" in printed(prevalence=9 / 40)
    assert "Fewer than" not in printed(prevalence=10 / 40)


def test_means_over_findings_and_measures_without_classes_say_nothing_of_it():
    assert "Fewer than" not in printed(prevalence=1 / 40, name="macro, 10 % of the labels")
    assert "Fewer than" not in printed(prevalence=1 / 40, metric="dice")
