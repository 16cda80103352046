"""CPU time to read one random 96-cubed crop of four sequences: our store beside nibabel on the same voxels, in turn.

    python benchmarks/crop_read.py

Prints one table. Quote the ratio: absolute times depend on the machine. The volume is synthetic (smooth structure plus
noise inside an ellipsoid, zero outside), 240 x 240 x 155, four sequences, int16.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study

SHAPE, CROP, ROUNDS = (240, 240, 155), (96, 96, 96), 6
SEQUENCES = ("flair", "t1c", "t1w", "t2w")


def volume(seed: int) -> np.ndarray:
    """A made-up skull-stripped sequence."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.zoom(rng.normal(size=(12, 12, 8)), np.array(SHAPE) / (12, 12, 8), order=1)
    grid = np.indices(SHAPE).astype(np.float32)
    inside = sum(((grid[a] - n / 2) / (0.36 * n)) ** 2 for a, n in enumerate(SHAPE)) < 1
    return ((600 + 150 * smooth + 15 * rng.normal(size=SHAPE)) * inside).astype(np.int16)


def main() -> None:
    """Write, then read in turn."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        series = []
        for number, name in enumerate(SEQUENCES):
            nib.save(nib.Nifti1Image(volume(number), np.eye(4)), work / f"{name}.nii.gz")
            series.append(Series(sequence=name, path=work / f"{name}.nii.gz"))
        sources = Sources(studies=[Study(subject="synthetic", study="1", series=tuple(series))], rejected=[])
        stores = {}
        for codec in ("lz4", "zstd"):
            write_store(sources, work / codec, Plan(codec=codec))
            stores[codec] = Store.open(work / codec, cache_bytes=0)
        rng = np.random.default_rng(0)
        spent: dict[str, list[float]] = {"nibabel": [], "lz4": [], "zstd": []}
        for _ in range(ROUNDS):
            start = tuple(int(rng.integers(0, n - c + 1)) for n, c in zip(SHAPE, CROP, strict=True))
            box = tuple(slice(s, s + c) for s, c in zip(start, CROP, strict=True))
            begun = time.process_time()
            theirs = [np.asarray(nib.load(one.path).get_fdata(dtype=np.float32)[box]) for one in series]
            spent["nibabel"].append(time.process_time() - begun)
            for codec, store in stores.items():
                begun = time.process_time()
                ours = store.read_crop(store.rows[0], start, CROP, sequences=SEQUENCES)
                spent[codec].append(time.process_time() - begun)
                np.testing.assert_array_equal(ours, np.stack(theirs))
        print(f"{'reader':<10}{'CPU ms (median)':>16}{'x nibabel':>11}{'MB on disk':>12}")
        base = statistics.median(spent["nibabel"])
        for name, seconds in spent.items():
            files = [one.path for one in series] if name == "nibabel" else (work / name / "studies").rglob("*")
            size = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
            middle = statistics.median(seconds)
            print(f"{name:<10}{1000 * middle:>16.1f}{base / middle:>11.1f}{size:>12.2f}")


if __name__ == "__main__":
    main()
