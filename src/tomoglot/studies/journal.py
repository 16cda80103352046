"""What a curation has finished so far: one line a study, on the disk before it counts, so that a killed run goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tomoglot.studies.atomic import flush, replacing
from tomoglot.studies.study import Frame, Study


def fingerprint(study: Study, **also: Any) -> str:
    """Digest of what a study is made from: names, sizes and times of its files, what the sources say of it, `also`."""
    said = {
        "files": [[series.sequence, stamps(series.path, series.frames)] for series in study.series],
        "reading": reading(study),
        "mask": None if study.mask is None else stamps(study.mask),
        "mask_labels": {str(number): name for number, name in study.mask_labels.items()},
        "report": None if study.report is None else study.report.text,
        "labels": {name: float(value) for name, value in study.labels.items()},
        "named": [study.subject, study.study, study.split, study.simulated],
        **also,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def reading(study: Study) -> dict[str, Any]:
    """How series are to be read, of those that are not simply read as they stand."""
    return {
        series.sequence: [series.channel, series.untilt, None if series.stated is None else asdict(series.stated)]
        for series in study.series
        if series.channel is not None or series.untilt or series.stated is not None
    }


def stamps(path: Path, frames: Sequence[Frame] = ()) -> list[Any]:
    """Name, size and time of every file of a file, a folder or DICOM frames; of these also which, and their order."""
    if frames:
        files = list(dict.fromkeys(frame.path for frame in frames))
        order = {file: place for place, file in enumerate(files)}
        return [*map(_stamp, files), [[order[frame.path], frame.member, frame.frame] for frame in frames]]
    return [_stamp(file) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]


def _stamp(path: Path) -> list[Any]:
    try:
        state = path.stat()
    except OSError:
        return [path.name, "absent"]
    return [path.name, state.st_size, state.st_mtime_ns]


class Journal:
    """Lines by key in one file that only grows; `add` returns when the line is on the disk.

    A line that a kill cut short is dropped when the file is opened again, and with it lines that no key asks for.
    Only places in the file are held in memory, not the lines.
    """

    def __init__(self, path: Path, *, keys: Iterable[str]) -> None:
        """Open the journal at `path`, keeping the lines of `keys`.

        Raises:
            ValueError: another process has it open.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ValueError(f"{path.parent.name}: another run is curating into this folder; wait for it") from None
        wanted, self._places = set(keys), dict[str, int]()
        if path.exists():
            with replacing(path) as part, path.open("rb") as old, part.open("wb") as new:
                for line in old:
                    key = _key(line)
                    if key in wanted and key not in self._places:
                        self._places[key] = new.tell()
                        new.write(line)
        self._file = path.open("a+b")
        flush(path.parent)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, key: str, value: Any) -> None:
        """Write a JSON value under a key that is not there yet."""
        self._file.seek(0, os.SEEK_END)
        self._places.setdefault(key, self._file.tell())
        body = json.dumps(value, sort_keys=True)
        self._file.write(f"{_check(key, body)} {key} {body}\n".encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self, keys: Iterable[str]) -> Iterator[Any]:
        """The values of these keys, one after another; keys that are not there are left out."""
        for key in keys:
            if key in self._places:
                self._file.seek(self._places[key])
                yield json.loads(self._file.readline().split(b" ", 2)[2])

    def close(self) -> None:
        """Let others write."""
        self._file.close()
        os.close(self._lock)


def _check(key: str, body: str) -> str:
    return hashlib.sha256(f"{key} {body}".encode()).hexdigest()[:16]


def _key(line: bytes) -> str | None:
    """The key of a whole line, None of one that was cut short or damaged."""
    parts = line.decode("utf-8", "replace").rstrip("\n").split(" ", 2)
    return parts[1] if line.endswith(b"\n") and len(parts) == 3 and parts[0] == _check(parts[1], parts[2]) else None
