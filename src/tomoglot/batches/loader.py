"""Store to batches: the same stream whatever the workers, and from any position on.

What a position of the stream holds depends on (seed, epoch, position) alone: the study by a permutation of the epoch,
the crop and the augmentation by a generator of the position. So a run that was stopped goes on with the very samples
that it would have seen, and ranks share out one stream.

Workers are threads, not processes: the decoder and numpy let go of the interpreter's lock, and handing 14 MB crops
between processes was measured to cost 8 to 40 ms each, against nothing for threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from tomoglot.batches.augment import Augment
from tomoglot.batches.batch import Batch
from tomoglot.batches.sample import CropSource, Sample, Voxels, Wanted, build_sample
from tomoglot.batches.text import tokenise
from tomoglot.config import Settings
from tomoglot.store.catalogue import StudyRow

# First word of every key, so that the permutation of an epoch and the draws of a sample never share a stream.
ORDER_KEY, SAMPLE_KEY = 1, 2


class LoaderConfig(Settings):
    """What a batch holds and how it is made ready.

    Attributes:
        batch_size: studies a batch, on each rank.
        crop_voxels: size of a crop; None takes whole fields, which must then all have one size.
        sequences: channels, in order; None takes the store's.
        workers: threads that read; 0 reads in line.
        seed: of the order, the crops and the augmentation.
        prefetch: batches being made ready while one is in use.
        augment: how samples vary in training.
        drop_sequence_probability: of hiding an acquired sequence in training; one always stays.
        sequences_per_study: at most so many of a study's acquired sequences in training, drawn at random; None reads
            all. What is not drawn is neither read nor encoded.
        masks: read lesion masks; a study that has none gets -1 everywhere.
        max_tokens: where reports are cut, if the loader has a tokenizer.
    """

    batch_size: int = Field(8, ge=1)
    crop_voxels: tuple[int, int, int] | None = None
    sequences: tuple[str, ...] | None = None
    workers: int = Field(2, ge=0)
    seed: int = Field(0, ge=0)
    prefetch: int = Field(2, ge=1)
    augment: Augment.Config = Augment.Config()
    drop_sequence_probability: float = Field(0.0, ge=0, lt=1)
    sequences_per_study: int | None = Field(None, ge=1)
    masks: bool = False
    max_tokens: int = Field(256, ge=2)


class StudySource(CropSource, Protocol):
    """What a loader needs of a store."""

    @property
    def rows(self) -> tuple[StudyRow, ...]:
        """Every study."""
        ...

    @property
    def sequences(self) -> tuple[str, ...]:
        """Every sequence name."""
        ...

    @property
    def findings(self) -> tuple[str, ...]:
        """Every finding that some study has a label for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pending:
    """A batch under way: tensors that workers fill, and calls that wait for them."""

    end: int
    rows: list[StudyRow]
    volumes: Tensor
    masks: Tensor | None
    waits: list[Callable[[], Sample]]


class Loader:
    """Batches of one split of a store.

    With `train` iterating is endless and goes on from `position`; a second iterator goes on where the first was left.
    Without, each iteration walks the studies once in order, with central crops and a smaller last batch.

    Attributes:
        sequences: names of the channels.
        findings: names of the labels.
        num_studies: studies that this loader walks.
        num_left_out: studies of the split that have none of the sequences.
        position: samples of the stream, over all ranks, that the yielded batches have used up.
    """

    def __init__(
        self,
        store: StudySource,
        config: LoaderConfig,
        *,
        split: str | None,
        train: bool,
        rank: int = 0,
        world: int = 1,
        findings: tuple[str, ...] | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Choose the studies.

        Raises:
            ValueError: no study of the split has any of the sequences, or whole fields differ in size.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} does not lie in a world of {world}")
        self.config = config
        self.sequences = tuple(store.sequences) if config.sequences is None else config.sequences
        self.findings = tuple(store.findings) if findings is None else findings
        self._store, self._train, self._rank, self._world = store, train, rank, world
        self._tokenizer = tokenizer
        # Not `store.select`, which refuses an unknown split before the sequences could be named as well.
        chosen = [row for row in store.rows if split is None or row.split == split]
        self._rows = [row for row in chosen if set(row.sequences) & set(self.sequences)]
        self.num_studies, self.num_left_out = len(self._rows), len(chosen) - len(self._rows)
        if not self._rows:
            raise ValueError(_nothing_found(store, split, self.sequences))
        self._wanted = Wanted(
            sequences=self.sequences,
            crop_voxels=config.crop_voxels or _whole_field(self._rows),
            drop_sequence_probability=config.drop_sequence_probability,
            sequences_per_study=config.sequences_per_study,
            augment=config.augment,
        )
        self._subjects = {name: number for number, name in enumerate(sorted({row.subject for row in store.rows}))}
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self.position = 0

    def seek(self, position: int) -> None:
        """Let the next iterator of a training loader begin at this position of the stream.

        Raises:
            ValueError: the position is negative, or this loader is not for training.
        """
        if position < 0 or not self._train:
            raise ValueError(f"only a training loader can be moved, and not before 0; asked for {position}")
        self.position = position

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches; leaving the loop cancels what was read ahead and ends the threads."""
        workers = self.config.workers
        pool = ThreadPoolExecutor(workers, thread_name_prefix="tomoglot-loader") if workers else None
        ahead = self.config.prefetch if pool else 0
        pending: deque[_Pending] = deque()
        begins = self._begins()
        try:
            while True:
                while len(pending) <= ahead and (begin := next(begins, None)) is not None:
                    pending.append(self._start(begin, pool))
                if not pending:
                    return
                ready = pending.popleft()
                batch = self._finish(ready)
                self.position = ready.end
                yield batch
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _begins(self) -> Iterator[int]:
        """Stream position at which each batch of this rank begins."""
        step = self.config.batch_size * self._world
        begin = self.position if self._train else 0
        while self._train or begin + self._rank * self.config.batch_size < self.num_studies:
            yield begin
            begin += step

    def _start(self, begin: int, pool: ThreadPoolExecutor | None) -> _Pending:
        """Hand out the samples of the batch that begins at `begin` over all ranks."""
        size = self.config.batch_size
        first = begin + self._rank * size
        last, end = first + size, begin + size * self._world
        if not self._train:
            last, end = min(last, self.num_studies), min(end, self.num_studies)
        shape = (last - first, *self._wanted.crop_voxels)
        volumes = torch.empty(shape[0], len(self.sequences), *shape[1:], dtype=torch.float32)
        masks = torch.empty(shape, dtype=torch.int16) if self.config.masks else None
        rows: list[StudyRow] = []
        waits: list[Callable[[], Sample]] = []
        for slot, position in enumerate(range(first, last)):
            row, rng = self._draw(position)
            call = partial(
                build_sample,
                self._store,
                row,
                self._wanted,
                rng=rng,
                out=volumes[slot].numpy(),
                mask_out=None if masks is None else masks[slot].numpy(),
            )
            rows.append(row)
            waits.append(call if pool is None else pool.submit(call).result)
        return _Pending(end=end, rows=rows, volumes=volumes, masks=masks, waits=waits)

    def _draw(self, position: int) -> tuple[StudyRow, np.random.Generator | None]:
        """The study at a position of the stream, and the generator of its sample."""
        if not self._train:
            return self._rows[position], None
        epoch, place = divmod(position, self.num_studies)
        if self._order is None or self._order[0] != epoch:
            order = _generator(ORDER_KEY, self.config.seed, epoch).permutation(self.num_studies)
            self._order = (epoch, order)
        row = self._rows[int(self._order[1][place])]
        return row, _generator(SAMPLE_KEY, self.config.seed, epoch, position)

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for the samples of a batch and put it together."""
        samples = [wait() for wait in pending.waits]
        rows = pending.rows
        known = [[finding in row.labels for finding in self.findings] for row in rows]
        labels = [[row.labels.get(finding, 0.0) for finding in self.findings] for row in rows]
        shape = (len(rows), len(self.findings))
        reports = tuple(row.report for row in rows)
        return Batch(
            volumes=pending.volumes,
            acquired=torch.from_numpy(np.stack([sample.acquired for sample in samples])),
            sequences=self.sequences,
            affine=torch.from_numpy(np.stack([sample.affine for sample in samples]).astype(np.float32)),
            studies=tuple(row.key for row in rows),
            subjects=torch.tensor([self._subjects[row.subject] for row in rows]),
            reports=reports,
            labels=torch.tensor(labels, dtype=torch.float32).reshape(shape),
            labelled=torch.tensor(known, dtype=torch.bool).reshape(shape),
            findings=self.findings,
            masks=pending.masks,
            # Here and not in a worker: a fast tokenizer must not be called by two threads at once.
            tokens=None if self._tokenizer is None else tokenise(reports, self._tokenizer, self.config.max_tokens),
        )


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _whole_field(rows: Sequence[StudyRow]) -> Voxels:
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"whole fields were asked for, but the store's have {len(shapes)} different sizes; set crop_voxels, or "
            "write the store with a plan that sets spacing_mm and field_voxels"
        )
    i, j, k = shapes.pop()
    return i, j, k


def _nothing_found(store: StudySource, split: str | None, sequences: tuple[str, ...]) -> str:
    splits = sorted({str(row.split) for row in store.rows})
    return (
        f"no study to load: asked for split {split!r} with any of the sequences {', '.join(sequences) or '(none)'}; "
        f"the store has {len(store.rows)} studies, the splits {', '.join(splits) or '(none)'} and the sequences "
        f"{', '.join(store.sequences) or '(none)'}"
    )
