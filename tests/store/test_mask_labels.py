"""Masks of data sets with other numbers lie in one store under one numbering."""

import nibabel
import numpy as np

from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.lesion import region_numbers
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study


def study(folder, name, *, enhancing, mask_labels):
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 12, 12), dtype=np.uint8)
    mask[3:6, 3:6, 3:6], mask[6:9, 3:6, 3:6] = enhancing, 2
    for suffix, voxels in (("t1c", rng.normal(100, 10, mask.shape).astype(np.float32)), ("seg", mask)):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{name}_{suffix}.nii.gz")
    series = (Series(sequence="t1c", path=folder / f"{name}_t1c.nii.gz"),)
    path = folder / f"{name}_seg.nii.gz"
    return Study(subject=name, study="1", series=series, mask=path, mask_labels=mask_labels, split="train")


def read_masks(path):
    store = Store.open(path)
    return [store.read_mask(row, (0, 0, 0), row.shape) for row in store.rows]


def test_one_store_holds_two_numberings_as_one_and_a_new_meaning_is_written(tmp_path):
    numbers = ({4: "rim", 2: "oedema"}, {3: "rim", 2: "oedema"})
    studies = [
        study(tmp_path, f"s{at}", enhancing=next(iter(labels)), mask_labels=labels) for at, labels in enumerate(numbers)
    ]
    write_store(Sources(studies=studies, rejected=[]), tmp_path / "store", Plan())
    one, other = read_masks(tmp_path / "store")
    np.testing.assert_array_equal(one, other)
    assert np.isin(one, region_numbers("enhancing")).sum() == np.isin(one, region_numbers("oedema")).sum() == 27
    # The files are the same and their meaning is not: the study is written again.
    again = study(tmp_path, "s0", enhancing=4, mask_labels={4: "plaque", 2: "oedema"})
    write_store(Sources(studies=[again, studies[1]], rejected=[]), tmp_path / "store", Plan())
    one, other = read_masks(tmp_path / "store")
    assert set(np.unique(one)) == {0, *region_numbers("plaque"), *region_numbers("oedema")}
    assert (one != other).sum() == 27
