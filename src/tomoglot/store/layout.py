"""Where things lie in a store folder, and the rules that keep them whole: canonical JSON, digests, renames.

::

    store.json         format, store digest, digest of every file below; sealed
    plan.json          the preprocessing plan
    split.json         subject -> split, frozen once written
    catalogue.parquet  one row a study;  accepted.parquet  what its source held;  rejected.parquet  what was refused
    series.parquet     what each series measures;  duplicates.parquet  pairs of two subjects that show the same
    studies/<key>/     volumes.zarr (sequence, i, j, k), mask.zarr (i, j, k), series.json, picture.png,
                       record.json (digest of each file of the study; sealed)
    quality.html       a page about all this, written later and again at will: no digest holds it

`<key>` is a hash of subject and study, so that no path in a store names anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.atomic import WRITING, flush

FORMAT = 2
# Format 1 knew nothing of the grid that a study came on. Such a store is still read; what needs that grid says so.
READABLE = (1, 2)
STORE_FILE = "store.json"
PLAN_FILE = "plan.json"
SPLIT_FILE = "split.json"
CATALOGUE_FILE = "catalogue.parquet"
ACCEPTED_FILE = "accepted.parquet"
REJECTED_FILE = "rejected.parquet"
SERIES_FILE = "series.parquet"
DUPLICATES_FILE = "duplicates.parquet"
# Every store has these, and those whose studies were looked at also the tables of that.
DIGESTED_FILES = (PLAN_FILE, SPLIT_FILE, CATALOGUE_FILE, ACCEPTED_FILE, REJECTED_FILE)
LOOK_TABLES = (SERIES_FILE, DUPLICATES_FILE)
PAGE_FILE = "quality.html"
STUDIES = "studies"
RECORD_FILE = "record.json"
LOOK_FILE = "series.json"
PICTURE_FILE = "picture.png"
VOLUMES = "volumes.zarr"
MASK = "mask.zarr"
SEAL = "digest"


def study_key(subject: str, study: str) -> str:
    """Sixteen hex digits that name a study's folder without naming its subject."""
    return hashlib.sha256(json.dumps([subject, study]).encode()).hexdigest()[:16]


def study_folder(store: Path, key: str) -> Path:
    """Folder of one finished study."""
    return store / STUDIES / key


def canonical(value: Any) -> bytes:
    """JSON bytes that depend on the value alone: sorted keys, fixed spacing, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return (text + "\n").encode()


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(value: dict[str, Any]) -> bytes:
    """Canonical JSON of `value` with its own digest inside, so that a flip of any bit shows."""
    assert SEAL not in value, "a sealed value cannot be sealed again"
    return canonical({**value, SEAL: digest_of(value)})


def unseal(content: bytes, name: str) -> dict[str, Any]:
    """Read what `seal` wrote.

    Raises:
        ValueError: the bytes are not exactly what `seal` would write; `name` is the file named in the message.
    """
    try:
        value = json.loads(content.decode())
        again = canonical(value)
    except ValueError as error:
        raise ValueError(f"{name}: damaged, it is no longer valid JSON") from error
    if not isinstance(value, dict) or again != content:
        raise ValueError(f"{name}: damaged, its bytes are not in canonical form")
    said = value.pop(SEAL, None)
    if said != digest_of(value):
        raise ValueError(f"{name}: damaged, its content does not match its own digest")
    return value


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_array(array: NDArray[np.generic]) -> str:
    """SHA-256 of an array's type, shape and little-endian C-order bytes: the voxels, however they are compressed."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    head = f"{plain.dtype.kind}{plain.dtype.itemsize} {plain.shape}\n".encode()
    whole = hashlib.sha256(head)
    whole.update(plain.reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def files_under(folder: Path) -> list[str]:
    """Relative POSIX paths of every file below `folder`, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def publish(finished: Path, target: Path) -> None:
    """Move a finished, synced study folder to its place; an older version of the study makes way.

    Between the two renames of a replacement neither version is visible; a run killed there writes the study again.
    """
    aside = finished.with_name(f"{finished.name}-old")
    replaced = target.exists()
    if replaced:
        target.replace(aside)
    finished.replace(target)
    flush(target.parent)
    if replaced:
        shutil.rmtree(aside)


def remove_study(store: Path, key: str) -> None:
    """Take a study out of the store, first out of sight and then off the disk."""
    folder = study_folder(store, key)
    if folder.exists():
        aside = folder.with_name(f"{WRITING}{key}-{os.getpid()}-old")
        folder.replace(aside)
        flush(folder.parent)
        shutil.rmtree(aside)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder that ends with this process, however it ends; gives False where another holds it.

    A process number would not do: it may be used again, and a killed process keeps it until its parent looks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something else than a store, among which a store's files would stand.

    A store that was begun has its plan, or nothing but an empty folder of studies.

    Raises:
        ValueError: it is such a folder.
    """
    if not folder.is_dir() or any((folder / name).is_file() for name in (STORE_FILE, PLAN_FILE)):
        return
    there = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if any(entry.name != STUDIES or any(entry.iterdir()) for entry in there):
        raise ValueError(
            f"{folder.name} is not empty and holds no store (no {STORE_FILE}); choose an empty or a new folder"
        )


def finished_studies(store: Path) -> list[str]:
    """Keys of the studies that are in their place, sorted."""
    return sorted(folder.name for folder in (store / STUDIES).iterdir() if not folder.name.startswith("."))


def remove_leftovers(store: Path) -> None:
    """Delete what killed writers left half done, except a study that a process is still writing."""
    for file in store.glob(f"{WRITING}*"):
        file.unlink()
    for folder in (store / STUDIES).glob(f"{WRITING}*"):
        with held(folder) as abandoned:
            if abandoned:
                shutil.rmtree(folder)
