"""A store written on Dask is the store that is written without."""

import numpy as np
import pytest

pytest.importorskip("distributed", reason="Dask is in the extra tomoglot[dask]")

from tomoglot.store.plan import Plan
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume


def test_a_store_written_on_dask_is_the_same_store(tmp_path):
    studies = []
    for at in range(3):
        path = tmp_path / f"{at}.nii.gz"
        voxels = np.random.default_rng(at).normal(100, 9, (12, 12, 12)).astype(np.float32)
        write_nifti(path, Volume(voxels=voxels, affine=np.diag([2.0, 2, 2, 1])))
        studies.append(Study(subject=f"s{at}", study="1", series=(Series(sequence="t1w", path=path),)))
    sources = Sources(studies=studies, rejected=[])
    here = write_store(sources, tmp_path / "here", Plan())
    there = write_store(sources, tmp_path / "there", Plan(), scheduler="local", workers=2)
    assert (there.accepted, there.rejected, there.digest) == (3, 0, here.digest)
