"""The multiple sclerosis layout: real studies where they are at hand, and its rules on empty files."""

import numpy as np
import pytest

from tomoglot.studies import layouts
from tomoglot.studies.curate import examine
from tomoglot.studies.source import read_source


@pytest.mark.parametrize("name", layouts.names())
def test_every_layout_can_be_asked_and_refuses_an_empty_folder(name, tmp_path):
    with pytest.raises(ValueError, match="does not look like"):
        layouts.read(name, tmp_path)


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="open_ms"):
        layouts.read("closed_ms", tmp_path)


def test_the_change_mask_is_not_taken_for_a_lesion_mask(tmp_path):
    folder = tmp_path / "longitudinal" / "raw" / "patient03"
    folder.mkdir(parents=True)
    for name in ("study1_T1W.nii.gz", "study2_FLAIR.nii.gz", "gt.nii.gz", "odd.nii.gz"):
        (folder / name).touch()
    sources = read_source(tmp_path)
    assert [(study.subject, study.study, study.mask) for study in sources.studies] == [
        ("ms-long-03", "study1", None),
        ("ms-long-03", "study2", None),
    ]
    assert [row.reason for row in sources.rejected] == ["unknown-file"]


def test_the_real_studies_are_five_and_readable(shared):
    root = shared / "data" / "open_ms"
    if not root.is_dir():
        pytest.skip("the real studies are not in the shared folder")
    studies = read_source(root).studies
    assert [(study.subject, len(study.series)) for study in studies] == [
        ("ms-cross-07", 4), ("ms-cross-19", 4), ("ms-long-01", 3), ("ms-long-01", 3), ("ms-long-04", 3)
    ]  # fmt: skip
    assert all(study.labels == {"demyelination": 1.0} and not study.simulated for study in studies)
    found = examine(studies[0])
    assert not found.rejected and set(found.volumes) == {"t1w", "t1c", "t2w", "flair"}
    assert found.mask is not None and np.unique(found.mask.voxels).tolist() == [0, 4]  # plaque, whatever the file says
