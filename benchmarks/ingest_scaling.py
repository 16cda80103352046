"""`tomoglot ingest` of raw DICOM with 1 and 2 workers, in turn: wall and CPU seconds of the whole command.

    python benchmarks/ingest_scaling.py [FOLDER] [--copies 16] [--rounds 2]

The series in FOLDER (a real T1w series beside some checkouts, `../shared/data`, where none is named) is copied under
made-up patients and UIDs into a temporary folder. Start and imports of the command and of each worker are in the times.
Prints one table, with the load of the machine before each run; on a machine that others use, quote the CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pydicom
from pydicom.uid import generate_uid

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "dicom_t1" / "dicoms"
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
COMMAND = "from tomoglot.cli import main; main()"


def copy(source: Path, target: Path, number: int) -> int:
    """Write the series again as another patient's; gives the bytes written."""
    target.mkdir(parents=True)
    written = 0
    for file in sorted(source.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.PatientID = f"made-up-{number}"
        for keyword in UIDS:
            if keyword in dataset:
                dataset[keyword].value = generate_uid(entropy_srcs=[str(dataset[keyword].value), str(number)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(target / file.name)
        written += (target / file.name).stat().st_size
    return written


def ingest(source: Path, out: Path, workers: int) -> tuple[float, float]:
    """Wall and CPU seconds of one command, its workers included."""
    command = [sys.executable, "-c", COMMAND, "ingest", str(source), "--out", str(out), "--workers", str(workers)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Copy, then ingest in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=DATA)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        size = sum(copy(options.folder, work / "raw" / str(number), number) for number in range(options.copies)) / 1e6
        print(f"{options.copies} series, {size:.0f} MB, {os.cpu_count()} cores")
        print(f"{'workers':>7}{'wall s':>9}{'CPU s':>8}{'series/s':>10}{'MB/s':>7}{'load before':>13}")
        for turn in range(2 * options.rounds):
            workers, load = 1 + turn % 2, os.getloadavg()[0]
            wall, cpu = ingest(work / "raw", work / f"store-{turn}", workers)
            rates = f"{options.copies / wall:>10.2f}{size / wall:>7.1f}"
            print(f"{workers:>7}{wall:>9.1f}{cpu:>8.1f}{rates}{load:>13.1f}", flush=True)


if __name__ == "__main__":
    main()
