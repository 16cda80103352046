"""Write a store: one study at a time, each whole or not at all, and a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from tomoglot.store import layout, looks
from tomoglot.store.catalogue import AffineRows, StudyRow, store_digest, study_digest, write_catalogue
from tomoglot.store.conform import Conformed, check_memory, conform
from tomoglot.store.cut_masks import CutMasks
from tomoglot.store.plan import Plan
from tomoglot.studies.atomic import flush_tree, write_bytes
from tomoglot.studies.cluster import each_anywhere
from tomoglot.studies.curate import AcceptedRow, Looked, accepted_of, examine, kept_of
from tomoglot.studies.journal import reading, stamps
from tomoglot.studies.pool import WorkerDied
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.split import check_split, split_digest, split_subjects
from tomoglot.studies.study import Rejected, Study
from tomoglot.studies.table import write_table

DEFAULT_FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSummary:
    """What a run did: studies `accepted` (`skipped` of them were already there), rows `rejected`, store digest.

    `stored` counts all studies of the store, also those of earlier runs on other sources. `num_duplicates` counts pairs
    of series of two subjects that show the same, `num_leaks` those across the split; `num_unlooked` studies of earlier
    runs which the search could not see. `cut` says of which studies the plan's field cuts the mask.
    """

    accepted: int
    rejected: int
    skipped: int
    digest: str
    stored: int = 0
    num_duplicates: int = 0
    num_leaks: int = 0
    num_unlooked: int = 0
    cut: CutMasks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    key: str
    study: Study
    split: str
    fingerprint: str


def write_store(
    sources: Sources,
    out: Path,
    plan: Plan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    split_fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    look: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> IngestSummary:
    """Examine, conform and write every study of `sources` into the store at `out`.

    A study appears by one rename after all of its files are on the disk. Run again after a crash or with more
    studies, finished ones are kept as they are, unless their files or their report changed or an older version wrote
    them; studies of earlier runs that these sources do not hold stay. `workers` above 1 examines studies in that many
    processes; `scheduler` on Dask (an address whose workers see the same files, or "local"); `progress` is called with
    (studies done, studies in all).

    Splits are the sources' own where every study has one, otherwise drawn by subject with `split_fractions`
    (0.7 train, 0.1 val, 0.2 test) and `seed`. Once written, a subject's split never changes.

    With `look`, measures, a signature and a small picture of each series are kept beside its study, and copies are
    searched across subjects: `series.parquet`, `duplicates.parquet`, and what `serve.quality` makes a page of.

    Raises:
        ValueError: `out` holds something else, the store was made with another plan, a split is inconsistent, another
            run is writing this store, the plan's field does not fit into memory, or no study was accepted.
    """
    layout.check_free(out)
    if scheduler in (None, "local"):
        most = max((len({series.sequence for series in study.series}) for study in sources.studies), default=1)
        check_memory(plan, sequences=most, workers=min(max(workers, 1), max(len(sources.studies), 1)))
    (out / layout.STUDIES).mkdir(parents=True, exist_ok=True)
    with layout.held(out) as alone:
        if not alone:
            raise ValueError(f"{out.name}: another ingest is writing this store; wait for it to end")
        _keep_plan(out, plan)
        layout.remove_leftovers(out)
        splits = _keep_split(out, sources, split_fractions or DEFAULT_FRACTIONS, seed)
        jobs, refused = _plan_jobs(sources, splits, plan)
        work = [job for job in jobs if not _is_there(out, job, look=look)]
        done = skipped = len(jobs) - len(work)
        if progress is not None:
            progress(done, len(jobs))
        one = partial(_write_study, out=out.absolute(), plan=plan, look=look)
        for job, result in _write_all(one, work, out=out, workers=workers, scheduler=scheduler):
            if result:
                layout.remove_study(out, job.key)
                refused.extend(result)
            done += 1
            if progress is not None:
                progress(done, len(jobs))
        summary = _finish(out, [job.key for job in jobs], (*sources.rejected, *refused), look=look)
        return replace(summary, skipped=skipped)


def _keep_plan(out: Path, plan: Plan) -> None:
    path = out / layout.PLAN_FILE
    # A plan that nothing was written with binds nobody: it may be why nothing was accepted.
    if not path.exists() or not layout.finished_studies(out):
        write_bytes(path, plan.to_json().encode())
        return
    kept = Plan.load(path).model_dump(mode="json")
    wanted = plan.model_dump(mode="json")
    different = [f"{key} ({kept.get(key)} there, {wanted[key]} now)" for key in wanted if kept.get(key) != wanted[key]]
    if different:
        raise ValueError(
            f"{out.name}: this store was made with another plan; different: {', '.join(different)}. "
            f"Write to a new folder, or take the store's own plan: --plan-of {out.name}, the store's folder"
        )


def read_split(path: Path) -> dict[str, str]:
    """Read split.json: subject -> split.

    Raises:
        ValueError: the file is damaged.
    """
    assignments = layout.unseal(path.read_bytes(), path.name)["assignments"]
    return {str(subject): str(split) for subject, split in assignments.items()}


def _keep_split(out: Path, sources: Sources, fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Assign subjects that have no split yet; write the file before any study, so that a crash cannot redraw it."""
    path = out / layout.SPLIT_FILE
    frozen = read_split(path) if path.exists() else {}
    own = [(study.subject, study.split) for study in sources.studies if study.split is not None]
    if own and len(own) != len(sources.studies):
        raise ValueError(f"{len(own)} of {len(sources.studies)} studies name a split; give one for all, or for none")
    check_split(own)
    given = dict(own) or split_subjects({study.subject for study in sources.studies}, fractions=fractions, seed=seed)
    moved = sum(frozen.get(subject, split) != split for subject, split in own)
    if moved:
        raise ValueError(
            f"{moved} studies name another split than this store froze for their subject; it cannot change"
        )
    splits = {**given, **frozen}
    if splits != frozen or not path.exists():
        write_bytes(path, layout.seal({"assignments": splits}))
    return splits


def _plan_jobs(sources: Sources, splits: Mapping[str, str], plan: Plan) -> tuple[list[_Job], list[RejectedRow]]:
    jobs: dict[str, _Job] = {}
    refused = []
    for study in sources.studies:
        key = layout.study_key(study.subject, study.study)
        if key in jobs:
            refused.append(_refusal(study, "duplicate-study", "the sources name this study twice; the first is kept"))
            continue
        split = splits[study.subject]
        jobs[key] = _Job(key=key, study=study, split=split, fingerprint=_fingerprint(study, split, plan))
    return list(jobs.values()), refused


def _fingerprint(study: Study, split: str, plan: Plan) -> str:
    """Digest of what a study is made from: names, sizes and times of its files, and what the table says of it."""
    files = {series.sequence: stamps(series.path, series.frames) for series in study.series}
    said: dict[str, Any] = {
        "files": files,
        "mask": None if study.mask is None else stamps(study.mask),
        "mask_labels": {str(number): name for number, name in study.mask_labels.items()},
        "report": None if study.report is None else study.report.text,
        "labels": {name: float(value) for name, value in study.labels.items()},
        "split": split,
        "simulated": study.simulated,
        "plan": plan.to_json(),
        # A study that an older version wrote is written again, so that its row holds all that this one keeps.
        "format": layout.FORMAT,
    }
    if chosen := reading(study):
        said["reading"] = chosen
    if study.labels_mined:
        said["labels_mined"] = study.labels_mined
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _is_there(out: Path, job: _Job, *, look: bool) -> bool:
    known = _read_record(out, job.key)
    return known is not None and known["source"] == job.fingerprint and (looks.is_kept(known) or not look)


def _read_record(out: Path, key: str) -> dict[str, Any] | None:
    path = layout.study_folder(out, key) / layout.RECORD_FILE
    try:
        return layout.unseal(path.read_bytes(), path.name)
    except (OSError, ValueError):
        return None


def _write_all(
    one: Callable[[_Job], tuple[RejectedRow, ...]],
    jobs: list[_Job],
    *,
    out: Path,
    workers: int,
    scheduler: str | None,
) -> Iterator[tuple[_Job, tuple[RejectedRow, ...]]]:
    """Write every study; give the reasons why not. Given up (Ctrl-C), what was half written is swept away."""
    written = each_anywhere(one, jobs, workers=workers, scheduler=scheduler)
    try:
        with closing(written):
            for job, result in written:
                if isinstance(result, WorkerDied):
                    result = (_refusal(job.study, "worker-died", "its process died twice, perhaps for want of memory"),)
                yield job, result
    finally:
        layout.remove_leftovers(out)


def _write_study(job: _Job, *, out: Path, plan: Plan, look: bool) -> tuple[RejectedRow, ...]:
    """Examine, conform and write one study. Returns nothing when it is in the store, the reasons when it is not."""
    one_thread_a_worker()
    try:
        examined = examine(job.study)
        if not examined.volumes:
            return examined.rejected or (_refusal(job.study, "no-usable-series", "no series could be read"),)
        conformed = conform(examined, plan)
        study = replace(job.study, split=job.split)
        looked = kept_of(study, examined) if look else Looked(accepted=accepted_of(study, examined))
    except Rejected as reason:
        return (_refusal(job.study, reason.reason, reason.evidence),)
    except (ValueError, ArithmeticError, OSError, MemoryError) as error:
        # The message may hold a path; its kind may not.
        return (_refusal(job.study, "cannot-be-processed", f"{type(error).__name__} while it was read"),)
    folder = out / layout.STUDIES / f"{layout.WRITING}{job.key}-{os.getpid()}"
    folder.mkdir()
    with layout.held(folder):
        refused = (*examined.rejected, *conformed.rejected)
        _fill(folder, job, conformed, looked.model_copy(update={"rejected": refused}), plan=plan)
        layout.publish(folder, layout.study_folder(out, job.key))
    return ()


def _fill(folder: Path, job: _Job, conformed: Conformed, looked: Looked, *, plan: Plan) -> None:
    """Write all files of a study and wait until they are on the disk."""
    arrays: dict[str, NDArray[np.generic]] = {layout.VOLUMES: conformed.voxels}
    write_array(folder / layout.VOLUMES, conformed.voxels, plan, attributes=_attributes(conformed))
    if conformed.mask is not None:
        arrays[layout.MASK] = conformed.mask
        write_array(folder / layout.MASK, conformed.mask, plan, attributes={})
    digests = {name: layout.digest_array(array) for name, array in arrays.items()}
    if looked.series:
        looks.keep(folder, looked)
    record = {
        "row": _row(job, conformed, digests).model_dump(mode="json"),
        "arrays": digests,
        "files": {name: layout.digest_file(folder / name) for name in layout.files_under(folder)},
        **looked.model_dump(mode="json", include={"accepted", "rejected"}),
        "source": job.fingerprint,
    }
    (folder / layout.RECORD_FILE).write_bytes(layout.seal(record))
    flush_tree(folder)


def one_thread_a_worker() -> None:
    """In a process beside others let zarr use one thread: there are as many processes as cores."""
    if multiprocessing.parent_process() is not None:
        zarr.config.set({"threading.max_workers": 1})


def write_array(path: Path, array: NDArray[np.generic], plan: Plan, *, attributes: Mapping[str, Any]) -> None:
    """Write a sharded Zarr 3 array: one shard, inner chunks of `plan.chunk_voxels` cubes, all sequences together.

    Chunks are compressed with bit shuffling and carry a CRC-32C; a chunk of zeros takes no space.
    """
    *stacked, i, j, k = array.shape
    cube = [min(plan.chunk_voxels, size) for size in (i, j, k)]
    shard = [-(-size // edge) * edge for size, edge in zip((i, j, k), cube, strict=True)]
    codec = BloscCodec(cname=plan.codec, clevel=5, shuffle="bitshuffle", typesize=array.dtype.itemsize)
    made = zarr.create_array(
        store=str(path),
        shape=array.shape,
        dtype=array.dtype,
        chunks=tuple(stacked + cube),
        shards=tuple(stacked + shard),
        compressors=(codec, Crc32cCodec()),
        fill_value=0,
        attributes=dict(attributes),
        config={"write_empty_chunks": False},
    )
    made[...] = array


def _attributes(conformed: Conformed) -> dict[str, Any]:
    """What a reader of the bare array needs to know."""
    return {
        "sequences": list(conformed.sequences),
        "voxel_to_ras_mm": conformed.affine.tolist(),
        "scale": [conformed.intensities[name].scale for name in conformed.sequences],
    }


def _row(job: _Job, conformed: Conformed, digests: Mapping[str, str]) -> StudyRow:
    study = job.study
    _, i, j, k = conformed.voxels.shape
    row = StudyRow(
        key=job.key,
        subject=study.subject,
        study=study.study,
        split=job.split,
        simulated=study.simulated,
        sequences=conformed.sequences,
        shape=(i, j, k),
        affine=_lines(conformed.affine),
        intensities=dict(conformed.intensities),
        report=None if study.report is None else study.report.text,
        labels={name: float(value) for name, value in study.labels.items()},
        has_mask=conformed.mask is not None,
        digest="",
        native_shape=conformed.native.shape,
        native_affine=_lines(conformed.native.affine),
        labels_mined=study.labels_mined,
        mask_kept=conformed.mask_kept,
        mask_field=conformed.mask_field,
    )
    return row.model_copy(update={"digest": study_digest(row.model_dump(mode="json"), digests)})


def _lines(affine: NDArray[np.float64]) -> AffineRows:
    return tuple(tuple(float(value) for value in line) for line in affine)  # type: ignore[return-value]


def _refusal(study: Study, reason: str, evidence: str) -> RejectedRow:
    return RejectedRow(subject=study.subject, study=study.study, sequence="", file="", reason=reason, evidence=evidence)


def _finish(out: Path, keys: list[str], refused: tuple[RejectedRow, ...], *, look: bool) -> IngestSummary:
    """Write the tables from what lies in the study folders, and last the file that makes the store readable."""
    rows, accepted, rejected = [], [], list(refused)
    for key in layout.finished_studies(out):
        if (record := _read_record(out, key)) is not None:
            rows.append(StudyRow.model_validate(record["row"]))
            accepted.append(AcceptedRow.model_validate(record["accepted"]))
            rejected.extend(RejectedRow.model_validate(row) for row in record["rejected"])
    write_catalogue(rows, out / layout.CATALOGUE_FILE)
    write_table(accepted, out / layout.ACCEPTED_FILE, AcceptedRow)
    write_table(rejected, out / layout.REJECTED_FILE, RejectedRow)
    copies = looks.gather(out, [row.key for row in rows]) if look else looks.forget(out)
    tables = (*layout.DIGESTED_FILES, *(layout.LOOK_TABLES if look else ()))
    digest = store_digest(tuple(rows))
    content = {
        "format": layout.FORMAT,
        "studies": len(rows),
        "store_digest": digest,
        "split_digest": split_digest(read_split(out / layout.SPLIT_FILE)),
        "files": {name: layout.digest_file(out / name) for name in tables},
    }
    write_bytes(out / layout.STORE_FILE, layout.seal(content))
    if not rows:
        raise ValueError(f"{out.name}: none of {len(keys)} studies was accepted; rejected.parquet says why for each")
    present = {row.key for row in rows}
    accepted_now = sum(key in present for key in keys)
    return IngestSummary(
        accepted=accepted_now,
        rejected=len(rejected),
        skipped=0,
        digest=digest,
        stored=len(rows),
        cut=CutMasks.of(rows),
        **asdict(copies),
    )
