"""Small simulated studies on disk, written as NIfTI."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Report, Series, Study, Volume

SEQUENCES = ("t1w", "flair", "t2w")
AFFINE = np.array([[1.0, 0, 0, -20], [0, 1, 0, -30], [0, 0, 1.25, 5], [0, 0, 0, 1]])


def write_cohort(folder: Path, count: int, *, shape: tuple[int, int, int] = (40, 44, 36)) -> Sources:
    """Simulated studies of noise in a box: every second one lacks t2w, every third has no mask and no report."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    studies = []
    for number in range(count):
        series = []
        for sequence in SEQUENCES[: 3 - number % 2]:
            voxels = np.zeros(shape, dtype=np.int16)
            voxels[4:-4, 5:-3, 3:-6] = rng.integers(1, 2000, (shape[0] - 8, shape[1] - 8, shape[2] - 9))
            path = folder / f"{number:02}_{sequence}.nii.gz"
            write_nifti(path, Volume(voxels=voxels, affine=AFFINE))
            series.append(Series(sequence=sequence, path=path))
        mask = None
        if number % 3:
            mask = folder / f"{number:02}_mask.nii.gz"
            write_nifti(mask, Volume(voxels=(voxels > 1500).astype(np.uint8), affine=AFFINE))
        studies.append(
            Study(
                subject=f"subject-{number}",
                study="01",
                series=tuple(series),
                mask=mask,
                report=Report(text=f"Simulated. Lesion {number}, “œdème”.") if number % 3 else None,
                labels={"mass": float(number % 2)} if number != 1 else {},
                simulated=True,
            )
        )
    return Sources(studies=studies, rejected=[])


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Five studies, shared: do not change the files."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), 5)


@pytest.fixture
def make_cohort(tmp_path: Path) -> Callable[..., Sources]:
    """Write studies of one's own: `make_cohort(count, shape=...)`."""
    return lambda count, **options: write_cohort(tmp_path / "raw", count, **options)


@pytest.fixture(scope="session")
def store_path(cohort: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five studies as a store, shared: do not change it."""
    from tomoglot.store.plan import Plan
    from tomoglot.store.writer import write_store

    out = tmp_path_factory.mktemp("stores") / "store"
    write_store(cohort, out, Plan())
    return out
