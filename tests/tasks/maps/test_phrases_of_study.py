"""Which side a finding lies on, what it is called, and which sentences say that it is there."""

import numpy as np
import pytest

from tomoglot.tasks.maps.phrases_of_study import (
    midline_mm,
    other_side,
    phrase_for,
    right_share,
    said_present,
    side_of_region,
)


def test_a_side_is_told_in_the_world_whichever_way_the_voxels_run():
    body = np.ones((10, 4, 4), dtype=bool)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    region = np.zeros_like(body)
    region[6:9, :2] = True
    turned = affine.copy()
    turned[0, 0], turned[0, 3] = -2.0, 18.0
    across = np.array([[0, 2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    for its, there, around in (
        (affine, region, body),
        (turned, region[::-1], body),
        (across, region.transpose(1, 0, 2), body.transpose(1, 0, 2)),
    ):
        middle = midline_mm(around, its)
        assert middle == pytest.approx(9.0)
        assert side_of_region("infarct", there, its, middle) == "right"
        assert right_share(there, its, middle) == 1.0
    assert side_of_region("infarct", region[::-1], affine, 9.0) == "left"
    assert side_of_region("infarct", region | region[::-1], affine, 9.0) == "bilateral"
    # 1 voxel of 9 over the line is a spill; 1 of 5 is not.
    for far, side in ((8, "right"), (4, "bilateral")):
        line = np.zeros_like(body)
        line[5, :4, :2] = np.arange(8).reshape(4, 2) < far
        line[4, 0, 0] = True
        assert side_of_region("pleural_effusion", line, affine, 9.0) == side
    for finding in ("hcc", "cardiomegaly", "midline_shift", "a_name_of_a_user"):
        assert side_of_region(finding, region, affine, 9.0) is None
    # A voxel on the line counts half for either side, and a map of nothing says neither.
    assert right_share(np.ones((3, 1, 1)), np.diag([1.0, 1, 1, 1]), 1.0) == 0.5
    assert right_share(-np.ones((3, 1, 1)), np.diag([1.0, 1, 1, 1]), 0.0) == 0.5


def test_the_midline_is_not_moved_by_an_effusion_or_a_stray_voxel():
    body = np.zeros((40, 10, 10), dtype=bool)
    body[5:35] = True
    body[5:18, :8] = False  # a lung that holds air alone
    body[0, 0, 0] = True
    assert midline_mm(body, np.eye(4)) == pytest.approx(19.5, abs=0.5)
    assert abs(np.argwhere(body).mean(axis=0)[0] - 19.5) > 2


def test_a_finding_is_called_by_its_usual_name():
    assert phrase_for("pleural_effusion", "left") == "left pleural effusion"
    assert phrase_for("hcc", None) == "hepatocellular carcinoma"
    assert phrase_for("cardiomegaly", "right") == "cardiomegaly"
    assert phrase_for("demyelination", "bilateral") == "bilateral demyelinating lesions"
    assert other_side("Left-sided mass, leftward shift, RIGHT lung upright.") == (
        "Right-sided mass, rightward shift, Left lung upright."
    )
    assert other_side("No mass.") is None


def test_sentences_are_those_that_say_the_finding_is_present():
    text = "INDICATION: Infarct?\nFINDINGS: Acute infarct on the left. Possible haemorrhage. No mass.\nIMPRESSION: {}"
    text = text.format("Infarct.")
    found = said_present(text, ("infarct", "haemorrhage", "mass", "a_name_of_a_user"))
    assert found == {"infarct": ("Acute infarct on the left.", "Infarct.")}
