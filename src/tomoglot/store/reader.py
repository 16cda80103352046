"""Read a store: rows from the catalogue, crops from the volumes. Only the chunks that a crop touches are read.

Crops are read by tensorstore, which merges and overlaps the ranges; many crops may be in flight. Safe to use from
many threads; open it after a fork, not before.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from tomoglot.store import layout
from tomoglot.store.catalogue import Intensity, StudyRow, read_catalogue
from tomoglot.store.plan import Plan

Box = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class PendingCrop:
    """A crop on its way. `result()` waits for it; reading goes on meanwhile."""

    _whole: NDArray[np.generic]
    _target: tuple[slice, ...] | None
    _rows: tuple[int, ...] | None
    _future: Any
    _name: str

    def result(self) -> NDArray[np.generic]:
        """Wait, and return the crop.

        Raises:
            ValueError: a chunk under the crop is damaged or missing.
        """
        if self._future is None or self._target is None:
            return self._whole
        try:
            read = np.asarray(self._future.result())
        except (ValueError, OSError) as error:
            raise _damaged(self._name) from error
        if self._rows is None:
            if read.shape == self._whole.shape:
                return read
            self._whole[self._target] = read
        else:
            for place, sequence in enumerate(self._rows):
                self._whole[sequence][self._target] = read[place]
        return self._whole


class Store:
    """An open store, read only. Build it with `Store.open`."""

    def __init__(self, path: Path, plan: Plan, rows: tuple[StudyRow, ...], *, digests: tuple[str, str]) -> None:
        """For `open`; `digests` are those of the store and of its split."""
        self.path = path
        self.plan = plan
        self.rows = rows
        self.digest, self.split_digest = digests
        self.sequences = tuple(sorted({name for row in rows for name in row.sequences}))
        self.findings = tuple(sorted({name for row in rows for name in row.labels}))
        self._context: Any = None
        self._handles: OrderedDict[str, Any] = OrderedDict()
        self._max_handles = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, cache_bytes: int = 64 << 20, max_handles: int = 1024, threads: int = 2) -> Self:
        """Open a store and check its tables against their digests; voxels are checked as they are read.

        `cache_bytes` bounds what decoded chunks and shard indices may take in memory, `max_handles` how many arrays
        stay open, `threads` how many decode at once.

        Raises:
            ValueError: not a store, one whose writing was interrupted, of another format, or with a damaged table.
        """
        path = Path(path)
        seal = path / layout.STORE_FILE
        if not seal.is_file():
            raise ValueError(f"{path.name}: no {layout.STORE_FILE} here; not a store, or its ingest was interrupted")
        content = layout.unseal(seal.read_bytes(), layout.STORE_FILE)
        if content["format"] not in layout.READABLE:
            read = " and ".join(map(str, layout.READABLE))
            raise ValueError(f"{path.name}: store format {content['format']}, this version reads {read}")
        for name in (layout.PLAN_FILE, layout.SPLIT_FILE, layout.CATALOGUE_FILE):
            if not (path / name).is_file() or layout.digest_file(path / name) != content["files"][name]:
                raise ValueError(f"{path.name}: {name} is damaged or its ingest was interrupted; run ingest again")
        store = cls(
            path,
            Plan.load(path / layout.PLAN_FILE),
            read_catalogue(path / layout.CATALOGUE_FILE),
            digests=(content["store_digest"], content["split_digest"]),
        )
        store._max_handles = max_handles
        store._context = ts.Context(
            {"cache_pool": {"total_bytes_limit": cache_bytes}, "data_copy_concurrency": {"limit": threads}}
        )
        return store

    def select(self, split: str | None) -> list[StudyRow]:
        """Rows of one split, in catalogue order; all rows for None.

        Raises:
            ValueError: no study is in that split.
        """
        rows = [row for row in self.rows if split is None or row.split == split]
        if not rows:
            known = sorted({row.split for row in self.rows})
            raise ValueError(f"this store has no split {split!r}; it has {', '.join(known) or 'no study'}")
        return rows

    def only(self, rows: Iterable[StudyRow]) -> Self:
        """The same store of which only these rows are seen; sequences, findings and digests stay those of the whole."""
        part = copy.copy(self)
        part.rows = tuple(rows)
        return part

    def read_crop(
        self, row: StudyRow, start: Box, shape: Box, *, sequences: Sequence[str] | None = None
    ) -> NDArray[np.int16]:
        """Read stored values of a box: int16 (sequence, i, j, k). Real value = stored * scale + offset.

        The box may reach outside the volume; there it is background: zero, or in CT the stored value of the window's
        lower end (as near as int16 comes), since zero Hounsfield units are water. `sequences` are returned in the
        order asked (None: the study's own); one that other studies of the store have and this one lacks is all zero,
        so look at `row.sequences` to tell what was acquired.

        Raises:
            ValueError: a sequence that no study of this store has, an empty box, or a damaged chunk.
        """
        return self.start_crop(row, start, shape, sequences=sequences).result()  # type: ignore[return-value]

    def start_crop(
        self, row: StudyRow, start: Box, shape: Box, *, sequences: Sequence[str] | None = None
    ) -> PendingCrop:
        """Begin `read_crop` and return at once, so that many crops are in flight."""
        asked = row.sequences if sequences is None else tuple(sequences)
        for name in asked:
            if name not in self.sequences:
                raise ValueError(f"no study of this store has sequence {name!r}; it has {', '.join(self.sequences)}")
        whole = np.zeros((len(asked), *_checked(shape)), dtype=np.int16)
        inside, target = _overlap(start, shape, row.shape)
        places = [place for place, name in enumerate(asked) if name in row.sequences]
        if not places:
            return PendingCrop(whole, None, None, None, row.key)
        if not self.plan.zero_is_background:
            for place in places:
                whole[place] = _stored(self.plan.background, row.intensities[asked[place]])
        if inside is None:
            return PendingCrop(whole, None, None, None, row.key)
        stored = [row.sequences.index(asked[place]) for place in places]
        rows = slice(stored[0], stored[-1] + 1)
        consecutive = stored == list(range(stored[0], stored[-1] + 1))
        future = self._start(row.key, layout.VOLUMES, (rows if consecutive else stored, *inside))
        if len(places) == len(asked):
            return PendingCrop(whole, (slice(None), *target), None, future, row.key)
        return PendingCrop(whole, target, tuple(places), future, row.key)

    def read_crops(
        self, requests: Iterable[tuple[StudyRow, Box, Box]], *, sequences: Sequence[str] | None = None
    ) -> list[NDArray[np.int16]]:
        """Read many crops, all in flight at once; results in the order of `requests` (row, start, shape)."""
        pending = [self.start_crop(row, start, shape, sequences=sequences) for row, start, shape in requests]
        return [crop.result() for crop in pending]  # type: ignore[misc]

    def read_mask(self, row: StudyRow, start: Box, shape: Box) -> NDArray[np.uint8]:
        """Read a box of the lesion mask: uint8 (i, j, k), zero outside the volume.

        Raises:
            ValueError: the study has no mask (unknown is not the same as empty), or a damaged chunk.
        """
        return self.start_mask(row, start, shape).result()  # type: ignore[return-value]

    def start_mask(self, row: StudyRow, start: Box, shape: Box) -> PendingCrop:
        """Begin `read_mask` and return at once."""
        if not row.has_mask:
            raise ValueError(f"study {row.key} has no mask; ask row.has_mask first")
        whole = np.zeros(_checked(shape), dtype=np.uint8)
        inside, target = _overlap(start, shape, row.shape)
        if inside is None:
            return PendingCrop(whole, None, None, None, row.key)
        return PendingCrop(whole, target, None, self._start(row.key, layout.MASK, inside), row.key)

    def _start(self, key: str, array: str, box: tuple[Any, ...]) -> Any:
        try:
            return self._handle(key, array).result()[box].read()
        except (ValueError, OSError) as error:
            raise _damaged(key) from error

    def _handle(self, key: str, array: str) -> Any:
        name = f"{key}/{array}"
        with self._lock:
            handle = self._handles.get(name)
            if handle is None:
                folder = layout.study_folder(self.path, key) / array
                spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
                # A finished study never changes in place: what is cached need not be checked again.
                spec |= {"recheck_cached_data": "open", "recheck_cached_metadata": "open"}
                handle = ts.open(spec, context=self._context, read=True)
                self._handles[name] = handle
                while len(self._handles) > self._max_handles:
                    self._handles.popitem(last=False)
            else:
                self._handles.move_to_end(name)
            return handle


def _damaged(key: str) -> ValueError:
    return ValueError(f"study {key}: a chunk is damaged or missing; `tomoglot verify` names every damaged file")


def _stored(real: float, intensity: Intensity) -> int:
    """The stored value nearest to a real one."""
    limits = np.iinfo(np.int16)
    return int(np.clip(round((real - intensity.offset) / intensity.scale), limits.min, limits.max))


def _checked(shape: Box) -> Box:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a crop has three sizes of at least one voxel, got {tuple(shape)}")
    return shape


def _overlap(start: Box, shape: Box, size: Box) -> tuple[tuple[slice, ...] | None, tuple[slice, ...]]:
    """Slices of the volume that the box covers (None where it covers nothing), and where they go in the box."""
    inside, target = [], []
    for first, length, limit in zip(start, shape, size, strict=True):
        low, high = max(int(first), 0), min(int(first) + int(length), limit)
        if low >= high:
            return None, ()
        inside.append(slice(low, high))
        target.append(slice(low - int(first), high - int(first)))
    return tuple(inside), tuple(target)
