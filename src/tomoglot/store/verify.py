"""Check a store to the bit: every file against its digest, every array against the digest of its voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zarr

from tomoglot.store import layout
from tomoglot.store.catalogue import StudyRow, read_catalogue, store_digest, study_digest
from tomoglot.store.writer import one_thread_a_worker, read_split
from tomoglot.studies.pool import WorkerDied, each
from tomoglot.studies.split import split_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with a store: the file (relative to the store) and what is wrong with it."""

    file: str
    what: str


def verify(path: Path, *, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Find every damaged, missing or foreign file of a store; an empty list means that each bit is as written.

    Files are compared with their SHA-256, then every array is decoded (by zarr-python, while readers use tensorstore)
    and compared with the digest taken of its voxels before they were compressed. `progress` is called with
    (studies done, studies in all).

    Raises:
        ValueError: there is no store at `path`.
    """
    if not (path / layout.STORE_FILE).is_file():
        raise ValueError(f"{path.name}: no {layout.STORE_FILE} here; not a store, or its ingest was interrupted")
    try:
        content = layout.unseal((path / layout.STORE_FILE).read_bytes(), layout.STORE_FILE)
    except ValueError as error:
        return [Fault(file=layout.STORE_FILE, what=str(error))]
    faults = _tables(path, content)
    broken = {fault.file for fault in faults}
    if layout.CATALOGUE_FILE in broken:
        # Without the catalogue each study can still be checked against its own record.
        rows: tuple[StudyRow, ...] = ()
        expected = {folder.name: "" for folder in (path / layout.STUDIES).glob("[0-9a-f]*") if folder.is_dir()}
    else:
        rows = read_catalogue(path / layout.CATALOGUE_FILE)
        expected = {row.key: row.digest for row in rows}
        faults += _agreement(path, content, rows, split_is_whole=layout.SPLIT_FILE not in broken)
    jobs = sorted(expected.items())
    for done, (job, found) in enumerate(each(partial(_study, path), jobs, workers=workers), start=1):
        if isinstance(found, WorkerDied):
            found = [Fault(file=f"{layout.STUDIES}/{job[0]}", what="could not be checked: the process died twice")]
        faults += found
        if progress is not None:
            progress(done, len(jobs))
    faults += _foreign(path, set(expected), known={*layout.DIGESTED_FILES, *content["files"]})
    return sorted(faults, key=lambda fault: (fault.file, fault.what))


def _tables(path: Path, content: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for name in sorted({*layout.DIGESTED_FILES, *content["files"]}):
        if not (path / name).is_file():
            faults.append(Fault(file=name, what="missing"))
        elif layout.digest_file(path / name) != content["files"][name]:
            faults.append(Fault(file=name, what="damaged, or written by an interrupted run: digest differs"))
    return faults


def _agreement(
    path: Path, content: Mapping[str, Any], rows: tuple[StudyRow, ...], *, split_is_whole: bool
) -> list[Fault]:
    """Do the tables, each whole, belong together?"""
    faults = []
    if store_digest(rows) != content["store_digest"] or len(rows) != content["studies"]:
        faults.append(Fault(file=layout.STORE_FILE, what="its store digest is not that of the catalogue's studies"))
    if split_is_whole:
        splits = read_split(path / layout.SPLIT_FILE)
        if split_digest(splits) != content["split_digest"]:
            faults.append(Fault(file=layout.SPLIT_FILE, what="its digest is not the one in store.json"))
        wrong = sum(splits.get(row.subject) != row.split for row in rows)
        if wrong:
            faults.append(Fault(file=layout.SPLIT_FILE, what=f"{wrong} studies are catalogued in another split"))
    return faults


def _study(store: Path, job: tuple[str, str]) -> list[Fault]:
    """Faults of one study; `job` is its key and its digest in the catalogue ("" where that is lost)."""
    one_thread_a_worker()
    key, digest = job
    folder = layout.study_folder(store, key)
    home = f"{layout.STUDIES}/{key}"
    if not folder.is_dir():
        return [Fault(file=home, what="missing")]
    path = folder / layout.RECORD_FILE
    if not path.is_file():
        return [Fault(file=f"{home}/{layout.RECORD_FILE}", what="missing; the study's files cannot be checked")]
    try:
        record = layout.unseal(path.read_bytes(), layout.RECORD_FILE)
    except ValueError as error:
        return [Fault(file=f"{home}/{layout.RECORD_FILE}", what=str(error))]
    faults = []
    told = record["row"]["digest"]
    if told != study_digest(record["row"], record["arrays"]) or (digest and told != digest):
        faults.append(Fault(file=f"{home}/{layout.RECORD_FILE}", what="its study digest is not the catalogue's"))
    files = _files(folder, record["files"])
    faults += [Fault(file=f"{home}/{fault.file}", what=fault.what) for fault in files]
    damaged = {fault.file.split("/")[0] for fault in files}
    for name, wanted in record["arrays"].items():
        # A damaged file is named already; decoding it would only name it again.
        if name not in damaged and layout.digest_array(zarr.open_array(folder / name, mode="r")[...]) != wanted:
            faults.append(Fault(file=f"{home}/{name}", what="decodes to other voxels than were written"))
    return faults


def _files(folder: Path, digests: Mapping[str, str]) -> list[Fault]:
    there = set(layout.files_under(folder)) - {layout.RECORD_FILE}
    faults = [Fault(file=name, what="missing") for name in digests.keys() - there]
    faults += [Fault(file=name, what="not a file that the writer made") for name in there - digests.keys()]
    for name in sorted(there & digests.keys()):
        if layout.digest_file(folder / name) != digests[name]:
            faults.append(Fault(file=name, what="damaged: digest differs"))
    return faults


def _foreign(path: Path, keys: set[str], *, known: set[str]) -> list[Fault]:
    """What lies in the store and does not belong to it."""
    ours = {layout.STORE_FILE, layout.STUDIES, layout.PAGE_FILE, *known}
    found = [entry.name for entry in path.iterdir() if entry.name not in ours]
    found += [f"{layout.STUDIES}/{entry.name}" for entry in (path / layout.STUDIES).iterdir() if entry.name not in keys]
    faults = []
    for name in found:
        left = Path(name).name.startswith(layout.WRITING)
        what = "left by an interrupted ingest; run ingest again" if left else "not in the catalogue"
        faults.append(Fault(file=name, what=what))
    return faults
