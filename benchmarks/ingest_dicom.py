"""Raw DICOM to voxels: ours beside dcm2niix and dicom2nifti on the same files, in turn; and headers beside pydicom.

    python benchmarks/ingest_dicom.py [FOLDER ...] [--rounds 4]

Without folders, the real series beside some checkouts (`../shared/data`) are read. Prints two tables of CPU seconds, of
this process and of those it starts; quote the ratios, absolute times depend on the machine. All write uncompressed
NIfTI. Ours checks geometry, names nothing, and runs in a process that has its imports done; so does dicom2nifti (left
out where it is not installed), and dcm2niix is a program in C that is started for each folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import resource
import shutil
import statistics
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom

from tomoglot.studies.dicom.files import find_files
from tomoglot.studies.dicom.header import Header
from tomoglot.studies.dicom.parse import read_headers
from tomoglot.studies.dicom.pixels import read_volume
from tomoglot.studies.dicom.volumes import group
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.study import Frame, Rejected

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
FOLDERS = ("dicom_t1/dicoms", "dicom_two_vendors/In/20180918GE", "dicom_two_vendors/In/20180918Si")
KEYWORDS = "PatientID StudyInstanceUID Rows Columns ImagePositionPatient ImageOrientationPatient PixelSpacing EchoTime"


def headers_of(frames: list[Frame]) -> list[Header]:
    """All headers that are good."""
    return [header for _, found in read_headers(frames) if not isinstance(found, Rejected) for header in found]


def ours(folder: Path, out: Path) -> None:
    """Find, parse, group, read, write; one NIfTI file a volume."""
    grouped = group(headers_of(find_files(folder).frames))
    for number, volume in enumerate(grouped.volumes):
        write_nifti(out / f"{number}.nii", read_volume(volume.frames))


def dcm2niix(folder: Path, out: Path) -> None:
    """Without compression, without JSON beside it."""
    command = ["dcm2niix", "-z", "n", "-b", "n", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def dicom2nifti(folder: Path, out: Path) -> None:
    """One call a folder of series; it groups by series itself."""
    from dicom2nifti import convert_directory

    convert_directory(str(folder), str(out), compression=False, reorient=False)


def pydicom_plain(frames: list[Frame]) -> None:
    """Elements found, no value decoded."""
    for frame in frames:
        pydicom.dcmread(frame.path, stop_before_pixels=True)


def pydicom_values(frames: list[Frame]) -> None:
    """The same, and eight values read (ours decodes about fifty)."""
    for frame in frames:
        dataset = pydicom.dcmread(frame.path, stop_before_pixels=True)
        for keyword in KEYWORDS.split():
            dataset.get(keyword)


def cpu_s() -> float:
    """CPU seconds of this process and of the ended ones that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    begun = cpu_s()
    work()
    return cpu_s() - begun


def convert(folder: Path, rounds: int) -> None:
    """One row a converter."""
    frames = find_files(folder).frames
    headers = headers_of(frames)
    num_series = len({header.series_uid for header in headers})
    megabytes = sum(frame.path.stat().st_size for frame in frames) / 1e6
    converters: dict[str, Callable[[Path, Path], None]] = {"tomoglot": ours}
    if shutil.which("dcm2niix"):
        converters["dcm2niix"] = dcm2niix
    if importlib.util.find_spec("dicom2nifti"):
        converters["dicom2nifti"] = dicom2nifti
    spent: dict[str, list[float]] = {name: [] for name in converters}
    for _ in range(rounds + 1):
        for name, converter in converters.items():
            with tempfile.TemporaryDirectory() as out:
                spent[name].append(timed(lambda: converter(folder, Path(out))))  # noqa: B023
    for name, seconds in spent.items():
        # The first round warms the file cache.
        middle = statistics.median(seconds[1:])
        what = f"{folder.name}, {num_series} series, {len(frames)} files"
        print(f"{what:<44}{name:<14}{middle:>9.3f}{num_series / middle:>11.1f}{megabytes / middle:>9.0f}")


def scan(folder: Path, rounds: int) -> None:
    """One row a reader of headers."""
    frames = find_files(folder).frames
    readers: dict[str, Callable[[], object]] = {
        "tomoglot": lambda: headers_of(frames),
        "pydicom": lambda: pydicom_plain(frames),
        "pydicom + 8 values": lambda: pydicom_values(frames),
    }
    spent: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds + 1):
        for name, reader in readers.items():
            spent[name].append(timed(reader))
    base = statistics.median(spent["pydicom"][1:])
    for name, seconds in spent.items():
        middle = statistics.median(seconds[1:])
        print(f"{folder.name:<24}{name:<22}{len(frames) / middle:>10.0f}{base / middle:>11.2f}")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    folders = options.folders or [DATA / name for name in FOLDERS if (DATA / name).is_dir()]
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print(f"{'volumes':<44}{'by':<14}{'CPU s':>9}{'series/s':>11}{'MB/s':>9}")
    for folder in folders:
        convert(folder, options.rounds)
    print(f"\n{'headers':<24}{'by':<22}{'files/s':>10}{'x pydicom':>11}")
    for folder in folders:
        scan(folder, 2 * options.rounds)


if __name__ == "__main__":
    main()
