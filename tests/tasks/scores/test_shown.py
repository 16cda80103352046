"""Subsets and losses of sequences: as if nothing else had been acquired, and encoded once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_detectors import NETS, batch, detector
from torch import nn

from tomoglot.tasks.scores.scoring import Truth
from tomoglot.tasks.scores.shown import View, judge_views, plan_subsets, score_views


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_view_is_judged_as_if_nothing_else_had_been_acquired(name: str) -> None:
    net, given = detector(NETS[name]), batch()
    views = [View(), View(sequences=("flair",)), View(sequences=("t1w", "dwi")), View(hidden=0.5)]
    reads: list[int] = []
    net.recipe.backbone().register_forward_pre_hook(lambda _, inputs: reads.append(len(inputs[0])))
    found = judge_views(net, given, views)
    assert sum(reads) == int(given.acquired.sum()), "each volume is encoded once, not once a view"
    for at, view in enumerate(views):
        shown = view.shown(given)
        some = shown.any(dim=1)
        for row in some.nonzero().flatten().tolist():
            one = slice(row, row + 1)
            alone = replace(batch(1), volumes=given.volumes[one] * shown[one, :, None, None, None], acquired=shown[one])
            torch.testing.assert_close(found[one, at], net.probabilities(net(alone)))
        assert found[~some, at].isnan().all()
    assert found[2, 2].isnan().all(), "a study of which nothing is shown is not judged"


def test_random_losses_leave_one_sequence_are_the_same_again_and_grow_with_the_share() -> None:
    given = replace(batch(), acquired=torch.ones(4, 3, dtype=torch.bool))
    some, more = View(hidden=0.4, seed=3).shown(given), View(hidden=0.8, seed=3).shown(given)
    assert torch.equal(some, View(hidden=0.4, seed=3).shown(given))
    assert (more <= some).all() and more.any(dim=1).all()
    # Over 400 studies, asked one by one, the share is what was asked; another seed hides others.
    one = replace(batch(1), acquired=torch.ones(1, 3, dtype=torch.bool))
    shown = [
        torch.cat([View(hidden=0.4, seed=seed).shown(replace(one, studies=(f"k{n}",))) for n in range(400)])
        for seed in (3, 4)
    ]
    assert shown[0].float().mean().item() == pytest.approx(0.6 + 0.4**3 / 3, abs=0.04)
    assert not torch.equal(*shown)
    one = View(hidden=0.99).shown(batch())
    assert (one.sum(dim=1) == 1).all() and (one <= batch().acquired).all()


def two_organs() -> tuple[Truth, np.ndarray]:
    """Brains have t1w and flair, livers t2w and flair."""
    studies = 60
    liver = np.arange(studies) % 2 == 1
    rng = np.random.default_rng(0)
    labelled = np.stack([~liver, liver, np.ones(studies, dtype=bool)], axis=1)
    truth = Truth(
        labels=(rng.random((studies, 3)) < 0.5).astype(np.float32),
        labelled=labelled,
        subjects=np.arange(studies),
        findings=("mass", "hcc", "normal"),
        studies=tuple(f"k{n}" for n in range(studies)),
    )
    return truth, np.stack([~liver, np.ones(studies, dtype=bool), liver], axis=1)


def test_each_organ_has_the_subsets_of_its_own_sequences() -> None:
    truth, acquired = two_organs()
    views = plan_subsets(truth, acquired, ("t1w", "flair", "t2w"), limit=127)
    listed = [(view.organ, view.sequences) for view in views]
    assert listed == [
        ("brain", ("t1w",)),
        ("brain", ("flair",)),
        ("brain", ("t1w", "flair")),
        ("liver", ("flair",)),
        ("liver", ("t2w",)),
        ("liver", ("flair", "t2w")),
    ]
    assert len(plan_subsets(truth, acquired, ("t1w", "flair", "t2w"), limit=2)) == 4
    alone = truth.columns(("mass",))
    names = {view.organ for view in plan_subsets(alone.rows(alone.labelled[:, 0]), acquired[::2], "abc", limit=9)}
    assert names == {None}


def test_subsets_are_scored_in_the_studies_they_show_and_best_and_worst_are_named() -> None:
    truth, acquired = two_organs()
    views = [*plan_subsets(truth, acquired, ("t1w", "flair", "t2w"), limit=9), View(organ="brain", hidden=0.5)]
    rng = np.random.default_rng(1)
    given = np.stack([0.5 + 0.3 * (truth.labels - 0.5) + 0.15 * rng.normal(size=(60, 3)) for _ in views])
    # The t1w alone says the contrary of what is true, and five brains lack it.
    given[0] = 1 - given[0]
    given[0, np.flatnonzero(truth.labelled[:, 0])[:5]] = np.nan
    rows, scores, notes = score_views(views, given, truth, draws=200)
    assert [(row.sequences, row.score.name) for row in rows] == [
        (view.sequences, f"{view.organ}: macro") for view in views[:-1]
    ]
    assert rows[0].score.value < 0.2 and rows[0].left_out == 5 and rows[0].score.studies == 25
    assert all(row.left_out == 0 and row.score.studies == 30 for row in rows[1:])
    table = {row.name: row for row in scores}
    assert table["brain: macro, t1w only"] == rows[0].score.but(name="brain: macro, t1w only")
    mean = table["brain: macro, mean over 3 subsets"]
    assert mean.value == pytest.approx(np.mean([row.score.value for row in rows[:3]]))
    # Its interval is that of the mean, not of the worst subset, whose own lies far below.
    assert rows[0].score.high < mean.low < mean.value < mean.high
    assert table["brain: macro, 50 % of sequences hidden"].value > 0.8
    assert "worst t1w" in notes[0] and len(notes) == 2


def test_a_head_that_ignores_the_image_says_the_same_whatever_is_shown() -> None:
    net = detector(NETS["both"])
    nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        found = judge_views(net, batch(), [View(), View(sequences=("flair",))])
    assert found[~found.isnan()].unique().numel() == 1
