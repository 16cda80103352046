"""A store in memory whose fields are only ever read whole: made in no time, whatever the disk is doing."""

import numpy as np

from tomoglot.store.catalogue import Intensity, StudyRow
from tomoglot.store.plan import Plan

AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


class WholeFields:
    """Rows, and the stored int16 of each (key, sequence)."""

    def __init__(self, rows, fields, plan=None):
        self.rows, self.fields, self.plan = tuple(rows), fields, plan or Plan()
        self.sequences = tuple(sorted({name for row in self.rows for name in row.sequences}))
        self.findings = tuple(sorted({name for row in self.rows for name in row.labels}))

    def read_crop(self, row, start, shape, *, sequences=None):
        names = row.sequences if sequences is None else sequences
        assert start == (0, 0, 0) and shape == row.shape, "read whole fields of this store"
        return np.stack([self.fields[row.key, name] for name in names])

    def read_mask(self, row, start, shape):
        raise NotImplementedError

    def but(self, keep=lambda row: True, **changes):
        """The rows that are kept, changed."""
        rows = [row.model_copy(update=changes) for row in self.rows if keep(row)]
        return WholeFields(rows, self.fields, self.plan)


def make_row(key, *, sequences, shape, mean=100.0, std=50.0, **values):
    """A simulated study of a subject of its own, unless it is said otherwise."""
    intensity = Intensity(scale=1.0, offset=0.0, mean=mean, std=std, percentiles={"1": 0.0, "99": 200.0}, foreground=1)
    plain = {
        "subject": key,
        "study": "1",
        "split": "test",
        "simulated": True,
        "affine": AFFINE,
        "report": None,
        "labels": {},
        "has_mask": False,
        "digest": "0",
    }
    intensities = dict.fromkeys(sequences, intensity)
    return StudyRow(key=key, sequences=sequences, shape=shape, intensities=intensities, **(plain | values))
