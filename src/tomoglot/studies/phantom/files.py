"""Write simulated studies as files: NIfTI whose bytes depend on nothing but the study, reports, truth, tables."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import nibabel as nib

import tomoglot
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.phantom.chest.cohort import CHEST
from tomoglot.studies.phantom.chest.radiograph import RADIOGRAPHS
from tomoglot.studies.phantom.cohort import BRAIN
from tomoglot.studies.phantom.liver.cohort import LIVER
from tomoglot.studies.phantom.questions import write_questions
from tomoglot.studies.phantom.simulated import SPLIT_FRACTIONS, Cohort, PhantomStudy
from tomoglot.studies.pool import WorkerDied, each
from tomoglot.studies.study import Volume

COHORTS: Mapping[str, Cohort] = {cohort.name: cohort for cohort in (BRAIN, LIVER, CHEST, RADIOGRAPHS)}
RECORD_FILE = "cohort.json"
COLUMNS = ("subject", "study", "sequence", "path", "report", "mask", "split", "simulated")


def cohort_named(name: str) -> Cohort:
    """The cohort of this name. Raises ValueError, which lists those there are, for another."""
    if name not in COHORTS:
        raise ValueError(f"there is no simulated cohort {name!r}; there are {', '.join(COHORTS)}")
    return COHORTS[name]


def nifti_bytes(volume: Volume, cohort: Cohort) -> bytes:
    """A gzipped NIfTI file, the same bytes for the same volume: no time stamp, no file name."""
    image = nib.Nifti1Image(volume.voxels, volume.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = cohort.description.encode()
    image.set_qform(volume.affine, code=cohort.form_code)
    image.set_sform(volume.affine, code=cohort.form_code)
    # Level 1: twice as fast as 6 for files a tenth larger.
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def write_study(study: PhantomStudy, out: Path, cohort: Cohort = BRAIN) -> list[dict[str, str]]:
    """Write one study, and its second reconstruction, below `out`.

    Returns its rows of studies.csv, one a series, with paths relative to `out`.
    """
    stem = f"{study.subject}_{study.study}"
    folder = PurePosixPath(study.subject) / study.study / "anat"
    report, mask = PurePosixPath("reports") / f"{stem}.txt", folder / f"{stem}_mask.nii.gz"
    write_bytes(out / mask, nifti_bytes(study.mask, cohort))
    write_bytes(out / report, study.report.text.encode())
    write_bytes(out / "truth" / f"{stem}.json", (json.dumps(study.truth, indent=1, sort_keys=True) + "\n").encode())
    rows = []
    for sequence, volume in study.volumes.items():
        path = folder / f"{stem}_{cohort.suffixes[sequence]}.nii.gz"
        write_bytes(out / path, nifti_bytes(volume, cohort))
        values = (study.subject, study.study, sequence, path, report, mask, study.split, "true")
        row = dict(zip(COLUMNS, map(str, values), strict=True))
        rows.append(row | {f"label:{name}": f"{study.labels[name]:.0f}" for name in cohort.findings})
    return rows if study.also is None else rows + write_study(study.also, out, cohort)


def make(index: int, *, out: Path, seed: int, cohort: str, options: Mapping[str, object]) -> list[dict[str, str]]:
    """Generate and write one study: what a worker process does."""
    known = cohort_named(cohort)
    return write_study(known.generate(seed, index, **options), out, known)


def write_cohort(
    out: Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    split_fractions: Mapping[str, float] | None = None,
    only: str | None = None,
    skull_stripped: bool = True,
    motion_mm: float | None = None,
    cohort: str = "brain",
    sequences: Sequence[str] | None = None,
) -> Path:
    """Write a simulated cohort with `questions.jsonl` on it; returns its studies.csv, which is written last.

    Files are the same bytes whatever the number of `workers`. What they are made from is kept in `cohort.json`: stopped
    and called again with the same arguments, the same cohort is finished.
    `progress(done, total)` is called after every study.
    `motion_mm` None is the cohort's own: nothing moves in brain and chest, breath-holds differ in the liver.
    `skull_stripped` sets to zero what lies outside the brain, and in the other cohorts outside the body (in CT to plain
    air). `sequences` are those that may be acquired; reports speak of no other.
    Raises ValueError as `generate` does, for an unknown cohort, for fewer than one subject or worker, and where `out`
    holds anything but this cohort.
    """
    known = cohort_named(cohort)
    if subjects < 1 or workers < 1:
        raise ValueError(f"a cohort needs at least 1 subject and 1 worker, got {subjects} and {workers}")
    options = {
        "spacing_mm": spacing_mm,
        "split_fractions": dict(split_fractions or SPLIT_FRACTIONS),
        "only": only,
        "skull_stripped": skull_stripped,
        "motion_mm": known.motion_mm if motion_mm is None else motion_mm,
    }
    if sequences is not None:
        options["sequences"] = tuple(sequences)
    claim(out, {"cohort": cohort, "subjects": subjects, "seed": seed, **options, "tomoglot": tomoglot.__version__})
    one = partial(make, out=out, seed=seed, cohort=cohort, options=options)
    rows: dict[int, list[dict[str, str]]] = {}
    done = progress or (lambda _done, _total: None)
    for index, written in each(one, range(subjects), workers=workers):
        if isinstance(written, WorkerDied):
            raise ValueError(f"the process that simulates study {index} died twice; for want of memory? Fewer workers")
        rows[index] = written
        done(len(rows), subjects)
    table = [row for index in sorted(rows) for row in rows[index]]
    write_questions(out, seed, studies=((row["subject"], row["study"]) for row in table))
    return write_table(out / "studies.csv", table)


def claim(out: Path, made_from: Mapping[str, object]) -> None:
    """Take a folder for a cohort, which goes on where this very one was begun.

    Raises ValueError where it holds other files, or a cohort made from something else: the two would be mixed.
    """
    path = out / RECORD_FILE
    record = json.dumps(made_from, indent=1, sort_keys=True) + "\n"
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    if before == record:
        return
    # A record alone is of a cohort of which nothing was written: what it was asked for may have been refused.
    if out.is_dir() and any(entry.name != RECORD_FILE and not entry.name.startswith(".") for entry in out.iterdir()):
        held = "holds no simulated cohort that says what it was made from"
        if before is not None:
            was, now = json.loads(before), json.loads(record)
            keys = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
            held = (
                f"holds another cohort ({'; '.join(f'{key} was {was.get(key)}, now {now.get(key)}' for key in keys)})"
            )
        raise ValueError(f"{out.absolute().name} is not empty and {held}; choose an empty or a new folder")
    write_bytes(path, record.encode())


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    """studies.csv: one row a series."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(path, text.getvalue().encode())
    return path
