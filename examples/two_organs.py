r"""One table of two simulated organs: brain studies of four sequences, and liver studies of eight cut to a box.

    python examples/two_organs.py --out work/two_organs --brain 1000 --liver 2000
    tomoglot ingest work/two_organs --out store --spacing-mm 5 --field 32,40,32

One store has one field of view, and a torso is much larger than a head. The box is the same in the world for every
study, so it tells nothing of where a lesion is. Everything written is simulated.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tomoglot.geometry import to_ras
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.phantom.files import cohort_named, write_study
from tomoglot.studies.pool import WorkerDied, each
from tomoglot.studies.study import Volume

BOX_MM = ((-10.0, 150.0), (-80.0, 100.0), (-70.0, 90.0))
BRAIN = ("t1w", "t1c", "t2w", "flair")


def cut(volume: Volume) -> Volume:
    """The voxels whose centres lie in the box, with RAS+ axes."""
    voxels, affine = to_ras(volume.voxels, volume.affine)
    affine = affine.copy()
    kept = []
    for axis, (low, high) in enumerate(BOX_MM):
        step, first = affine[axis, axis], affine[axis, 3]
        start = max(0, int(np.ceil((low - first) / step)))
        stop = min(voxels.shape[axis], int(np.floor((high - first) / step)) + 1)
        kept.append(slice(start, stop))
        affine[axis, 3] = first + start * step
    return Volume(voxels=np.ascontiguousarray(voxels[tuple(kept)]), affine=affine)


def make(job: tuple[str, int], *, out: Path, seed: int, spacing_mm: float) -> list[dict[str, str]]:
    """Simulate and write one study; its rows of the table."""
    organ, index = job
    cohort = cohort_named(organ)
    asked = {"sequences": BRAIN} if organ == "brain" else {}
    study = cohort.generate(seed, index, spacing_mm=spacing_mm, **asked)
    if organ == "liver":
        volumes = {name: cut(volume) for name, volume in study.volumes.items()}
        study = replace(study, volumes=volumes, mask=cut(study.mask))
    return write_study(study, out, cohort)


def main() -> None:
    """Write both cohorts and their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--brain", type=int, default=1000)
    parser.add_argument("--liver", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--spacing-mm", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    jobs = [("liver", index) for index in range(given.liver)] + [("brain", index) for index in range(given.brain)]
    one = partial(make, out=given.out, seed=given.seed, spacing_mm=given.spacing_mm)
    found: dict[int, list[dict[str, str]]] = {}
    for number, rows in each(one, jobs, workers=given.workers):
        if isinstance(rows, WorkerDied):
            raise SystemExit(f"the process that simulates study {number} died twice; fewer --workers?")
        found[number] = rows
        if len(found) % 100 == 0:
            print(f"simulated {len(found)} of {len(jobs)}")
    table = [row for number in sorted(found) for row in found[number]]
    columns = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_bytes(given.out / "studies.csv", text.getvalue().encode())
    print(f"wrote {given.out / 'studies.csv'} (simulated studies)")


if __name__ == "__main__":
    main()
