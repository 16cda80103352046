"""A mask's numbers mean the same over all data sets."""

import nibabel
import numpy as np
import pytest

from tomoglot.studies.curate import examine
from tomoglot.studies.lesion import LESIONS, REGIONS, check_mask_labels, region_numbers, renumber
from tomoglot.studies.phantom.lesions import MASK_LABELS
from tomoglot.studies.study import Rejected, Series, Study


def test_the_simulated_cohort_uses_these_numbers():
    assert {name: LESIONS[name] for name in MASK_LABELS} == dict(MASK_LABELS)
    assert len(set(LESIONS.values())) == len(LESIONS)


def test_renumbering_is_its_definition():
    mask = np.random.default_rng(0).choice([0, 1, 2, 4], size=(5, 6, 7)).astype(np.uint8)
    labels = {1: "necrosis", 2: "oedema", 4: "rim"}
    ours = renumber(mask, labels)
    assert ours.dtype == np.uint8
    for at, number in np.ndenumerate(mask):
        assert ours[at] == (LESIONS[labels[int(number)]] if number else 0)
    assert renumber(mask, {}) is mask


def test_a_number_without_a_meaning_is_refused():
    mask = np.array([[[0, 1, 4]]], dtype=np.uint8)
    with pytest.raises(Rejected, match=r"unknown-mask-label: the mask holds 4, .*1 necrosis, 2 oedema"):
        renumber(mask, {1: "necrosis", 2: "oedema"})


@pytest.mark.parametrize("labels", [{1: "tumour"}, {0: "rim"}, {256: "rim"}])
def test_a_meaning_that_cannot_be_is_refused(labels):
    with pytest.raises(Rejected, match="bad-mask-labels"):
        check_mask_labels(labels)


def test_regions_are_nested_and_a_misspelt_one_is_corrected():
    enhancing, core, whole = (set(region_numbers(name)) for name in ("enhancing", "core", "whole"))
    assert enhancing < core < whole < set(region_numbers("lesion")) == set(LESIONS.values())
    assert region_numbers("plaque") == (4,)
    assert all(set(tissues) <= set(LESIONS) for tissues in REGIONS.values())
    with pytest.raises(ValueError, match="did you mean 'whole'"):
        region_numbers("hole")


@pytest.mark.parametrize(
    ("labels", "stored"), [({}, [0, 1, 4]), ({1: "plaque", 4: "rim"}, [0, 2, 4]), ({1: "rim"}, None)]
)
def test_examine_brings_a_mask_to_our_numbers_or_leaves_it_out(tmp_path, labels, stored):
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 12, 12), dtype=np.uint8)
    mask[2:4], mask[6:8] = 1, 4
    for name, voxels in (("t1w", rng.normal(100, 10, mask.shape).astype(np.float32)), ("mask", mask)):
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
    series = (Series(sequence="t1w", path=tmp_path / "t1w.nii.gz"),)
    study = Study(subject="a", study="1", series=series, mask=tmp_path / "mask.nii.gz", mask_labels=labels)
    found = examine(study)
    if stored is None:
        assert found.mask is None and found.volumes
        assert [row.reason for row in found.rejected] == ["unknown-mask-label"]
    else:
        assert found.mask is not None and np.unique(found.mask.voxels).tolist() == stored
        assert ((found.mask.voxels > 0) == (mask > 0)).all()
