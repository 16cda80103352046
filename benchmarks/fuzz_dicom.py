"""Seeded mutants of pydicom's packaged files with good studies among them, through the whole path into a store.

    python benchmarks/fuzz_dicom.py [--mutants 10000] [--good 20] [--series 24] [--seed 0]

Counts crashes (the run ends by anything but itself), hangs (one file or one study takes more than 10 s), the peak
memory and the good studies that are stored. Besides the packaged files, `--series` whole series in several encodings
have one slice damaged each, so that decoders meet broken streams as well. Prints one table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "studies"))

from dicom_mutants import mutate, originals
from dicom_series import axis_affine, marked_volume, write_series
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.dicom import decoder
from tomoglot.studies.dicom.files import find_files
from tomoglot.studies.dicom.parse import read_header
from tomoglot.studies.dicom.read import read_dicom
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.study import Rejected

HANG_S = 10.0
ENCODINGS = (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian)
KEY = Pseudonyms(b"this key guards made-up people only")
T1 = {"SeriesDescription": "T1 SE", "RepetitionTime": 500, "EchoTime": 10}


def write_corpus(folder: Path, options: argparse.Namespace) -> None:
    """Mutants and good studies, in folders that mix them."""
    files = originals(most_bytes=200_000)
    for number in range(options.mutants):
        place = folder / f"{number % 50:02d}"
        place.mkdir(exist_ok=True)
        (place / f"m{number:06d}.dcm").write_bytes(mutate(files, seed=options.seed * 1_000_003 + number))
    affine = axis_affine()
    for number in range(options.good + options.series):
        encoding = ENCODINGS[number % len(ENCODINGS)]
        good = number < options.good
        name = f"GOOD{number}" if good else f"BAD{number}"
        voxels = marked_volume((40, 36, 12), seed=number)
        place = folder / f"{number % 50:02d}"
        paths = write_series(
            place, voxels, affine, patient=name, header=T1, transfer_syntax=encoding, prefix=name, shuffle=number
        )
        if not good:
            damaged = paths[number % len(paths)]
            damaged.write_bytes(mutate([damaged.read_bytes()], seed=options.seed * 1_000_003 - number))


def run(folder: Path, good: int) -> dict[str, object]:
    """Headers one by one with the clock, then everything into a store; what a child process reports."""
    slowest_header, hangs = 0.0, 0
    for frame in find_files(folder).frames:
        begun = time.perf_counter()
        with contextlib.suppress(Rejected):
            read_header(frame)
        spent = time.perf_counter() - begun
        slowest_header, hangs = max(slowest_header, spent), hangs + (spent > HANG_S)
    begun = time.perf_counter()
    sources = read_dicom(folder, pseudonyms=KEY)
    read_s = time.perf_counter() - begun
    marks = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as out:
        write_store(sources, Path(out), Plan(), progress=lambda *_: marks.append(time.perf_counter()))
        stored = {row.subject for row in Store.open(Path(out)).rows}
    studies = [after - before for before, after in itertools.pairwise(marks[1:])]
    wanted = {KEY.subject(f"GOOD{number}") for number in range(good)}
    # The decoder's process is ended here, so that its memory is counted.
    decoder._CHILD.close()
    kilobytes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "slowest header, s": round(slowest_header, 3),
        "headers and grouping, s": round(read_s, 1),
        "slowest study, s": round(max(studies, default=0.0), 2),
        "hangs over 10 s": hangs + sum(spent > HANG_S for spent in studies),
        "peak memory, MB": round(kilobytes[0] / 1024),
        "peak memory of a decoder's process, MB": round(kilobytes[1] / 1024),
        "good studies stored": f"{len(wanted & stored)} of {good}",
        "other studies stored": len(stored - wanted),
        "rejected rows": len(sources.rejected),
        "reasons": dict(Counter(row.reason for row in sources.rejected).most_common(12)),
    }


def main() -> None:
    """Write the corpus, run the path over it in a child process, print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("mutants", 10_000), ("good", 20), ("series", 24), ("seed", 0), ("limit-s", 7200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run(options.child, options.good)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), options)
        before = time.perf_counter()
        command = [sys.executable, __file__, "--child", folder, "--good", str(options.good)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit_s, check=False)
            crashed, output, errors = done.returncode != 0, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            crashed, output, errors = True, "", f"did not end within {options.limit_s} s"
        spent = time.perf_counter() - before
    found = {} if crashed else json.loads(output.splitlines()[-1])
    table = {
        "mutants": options.mutants,
        "damaged series": options.series,
        "crashes": int(crashed),
        "wall, s": round(spent),
    }
    for name, value in (table | found).items():
        print(f"{name:<40}{value}")
    if errors.strip():
        print("on the error stream:", errors[-3000:])
    sys.exit(crashed)


if __name__ == "__main__":
    main()
