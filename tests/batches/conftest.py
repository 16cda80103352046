"""A store in memory: known voxels, so that tests can say where each one should arrive."""

from collections.abc import Sequence

import numpy as np
import pytest

from tomoglot.store.catalogue import Intensity, StudyRow
from tomoglot.store.plan import Plan

SEQUENCES = ("t1w", "t2w", "flair")


class MemoryStore:
    """Keeps the promises of the store that the loader relies on, in the plainest way."""

    def __init__(self, rows: Sequence[StudyRow], volumes, masks, plan: Plan | None = None) -> None:
        self.rows = tuple(rows)
        self.plan = plan or Plan()
        self.volumes, self.masks = volumes, masks
        self.sequences = SEQUENCES
        self.findings = ("mass", "oedema")

    def read_crop(self, row, start, shape, *, sequences=None):
        names = row.sequences if sequences is None else sequences
        crops = [_padded(self.volumes[row.key, name], start, shape) for name in names]
        return np.stack(crops) if crops else np.zeros((0, *shape), np.int16)

    def read_mask(self, row, start, shape):
        return _padded(self.masks[row.key], start, shape)


def _padded(volume, start, shape):
    crop = np.zeros(shape, volume.dtype)
    for voxel in np.ndindex(*shape):
        source = tuple(a + b for a, b in zip(start, voxel, strict=True))
        if all(0 <= at < size for at, size in zip(source, volume.shape, strict=True)):
            crop[voxel] = volume[source]
    return crop


def make_row(number: int, **changes) -> StudyRow:
    """Study of a subject; two studies share each subject, subjects are not in the order of studies."""
    sequences = changes.pop("sequences", ("t1w", "t2w") if number % 2 else ("t1w", "flair"))
    intensity = Intensity(
        scale=0.5, offset=0.0, mean=100.0, std=50.0, percentiles={"1": 10.0, "99": 200.0}, foreground=0.5
    )
    values = {
        "key": f"key-{number:02d}",
        "subject": f"subject-{9 - number // 2}",
        "study": f"study-{number}",
        "split": "train" if number < 7 else "val",
        "simulated": True,
        "sequences": sequences,
        "shape": (6, 5, 4),
        "affine": ((0.0, -2.0, 0.0, 10.0), (1.5, 0.0, 0.0, -20.0), (0.0, 0.0, 3.0, 5.0), (0.0, 0.0, 0.0, 1.0)),
        "intensities": {name: intensity for name in sequences},
        "report": None if number == 3 else f"There is a mass of {number} mm. No oedema.",
        "labels": {"mass": 1.0} if number % 2 else {"mass": 0.0, "oedema": 1.0},
        "has_mask": number % 2 == 0,
        "digest": "0",
    }
    return StudyRow(**(values | changes))


def make_store(rows: Sequence[StudyRow], plan: Plan | None = None) -> MemoryStore:
    rng = np.random.default_rng(0)
    volumes = {
        (row.key, name): rng.integers(0, 400, row.shape, dtype=np.int16) * rng.integers(0, 2, row.shape, dtype=np.int16)
        for row in rows
        for name in row.sequences
    }
    masks = {row.key: rng.integers(0, 2, row.shape, dtype=np.uint8) for row in rows if row.has_mask}
    return MemoryStore(rows, volumes, masks, plan)


@pytest.fixture
def store() -> MemoryStore:
    return make_store([make_row(number) for number in range(10)])


@pytest.fixture
def row_of():
    return make_row


@pytest.fixture
def store_of():
    return make_store
