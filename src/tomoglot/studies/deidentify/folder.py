"""A folder of raw studies, written again without identity: DICOM images, the reports that belong to them, NIfTI files.

Files are named by pseudonyms and appear whole or not at all; what cannot be made safe is not written but listed.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pydicom
from pydantic import BaseModel

from tomoglot.studies import atomic
from tomoglot.studies.deface import check_tools, deface
from tomoglot.studies.deidentify.burnt_in import burnt_in_header, burnt_in_pixels
from tomoglot.studies.deidentify.header import Identities, deidentify_dataset, identities_of, identity_of, quiet
from tomoglot.studies.deidentify.profile import Options
from tomoglot.studies.deidentify.text import deidentify_text
from tomoglot.studies.dicom.files import Limits, find_files, open_file
from tomoglot.studies.dicom.parse import read_image
from tomoglot.studies.dicom.pixels import stored_frames
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.pool import WorkerDied, each
from tomoglot.studies.pseudonym import Original, Pseudonyms, write_mapping
from tomoglot.studies.source import RejectedRow
from tomoglot.studies.study import Frame, Rejected
from tomoglot.studies.table import write_table

Progress = Callable[[int, int], None]
_RECORD = "deidentified.json"
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, EOFError, OSError)
_LONGEST_REPORT = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Deidentified:
    """How many files were written, how many were there from an earlier run, and what was refused."""

    written: int
    skipped: int
    rejected: tuple[RejectedRow, ...]


class DefacedRow(BaseModel):
    """One line of `defaced.parquet`: what was cut from a NIfTI file."""

    file: str
    outcome: str
    brain_ml: float
    removed_ml: float
    removed_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """Who and what one image is of: crosses from a worker to us, and is written nowhere but into the mapping."""

    patient: str
    study: str
    accession: str
    identities: Identities


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What every file needs to know."""

    source: Path
    out: Path
    pseudonyms: Pseudonyms
    options: Options


def deidentify_folder(
    source: Path,
    out: Path,
    *,
    key: Path,
    options: Options | None = None,
    mapping: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Deidentified:
    """Write `source` (a folder, a zip file) to `out` without identity, after `options`; run again, it goes on.

    DICOM images become `<subject>/<study>/<file>.dcm`; a `.txt` report whose name is a patient id, a study UID or an
    accession number becomes `reports/<subject>_<study>.txt`; a NIfTI file becomes `nifti/<file>.nii.gz` with nothing
    but its voxels and its affine. All names are pseudonyms made with `key`. `rejected.parquet` lists what was not
    written. `mapping` asks for a table of what the pseudonyms stand for, in a file that only you can read.
    With `options.deface` every NIfTI file is taken for a head, `defaced.parquet` says what was cut, and what
    `deface` refuses is not written.

    Raises:
        ValueError: `key` or `mapping` lies in `out`, `out` in `source`, or `out` was begun with another key or options;
            faces are to be cut from DICOM, or without the extra.
    """
    source, out = Path(source), Path(out)
    _check_places(source, out, {"key": key, "mapping": mapping})
    work = _Work(source=source, out=out, pseudonyms=Pseudonyms.from_file(key), options=options or Options())
    found = find_files(source)
    _check_faces(work, len(found.frames))
    _begin(work)
    # Of what is no DICOM file, texts and NIfTI files have rows of their own below.
    others = [
        refused for refused in found.rejected if not re.search(r"'\.(txt|nii|gz)' are not", refused.error.evidence)
    ]
    rows = [_row(work, refused.where, refused.error) for refused in others]
    visits: dict[Frame, _Visit] = {}
    counts: Counter[str] = Counter()
    for done, (frame, result) in enumerate(each(partial(_one, work), found.frames, workers=workers), 1):
        if isinstance(result, Rejected | WorkerDied):
            died = Rejected("worker-died", "the process that read this file crashed or was ended from outside")
            rows.append(_row(work, frame, died if isinstance(result, WorkerDied) else result))
        else:
            visits[frame] = result[0]
            counts[result[1]] += 1
        if progress is not None:
            progress(done, len(found.frames))
    cut: list[DefacedRow] = []
    for path, handled in [*_reports(work, visits), *_niftis(work, cut)]:
        if handled is None:
            counts["written"] += 1
        else:
            rows.append(_row(work, Frame(path=path), handled))
    write_table(rows, out / "rejected.parquet", RejectedRow)
    if work.options.deface:
        write_table(cut, out / "defaced.parquet", DefacedRow)
    if mapping is not None:
        write_mapping(
            mapping, _originals(work, visits, [*found.frames, *(refused.where for refused in found.rejected)])
        )
    return Deidentified(written=counts["written"], skipped=counts["skipped"], rejected=tuple(rows))


def _check_places(source: Path, out: Path, secrets: dict[str, Path | None]) -> None:
    for name, path in secrets.items():
        if path is not None and Path(path).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"the {name} file must not lie in the output folder, which is to be given away")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError("the output folder must not lie in the source, or the next run would read it")


def _check_faces(work: _Work, dicom_images: int) -> None:
    if work.options.deface:
        check_tools()
        if dicom_images:
            raise ValueError(f"faces are cut from NIfTI files alone, and there are {dicom_images} DICOM images here")


def _begin(work: _Work) -> None:
    """Record options and key (as one of its aliases) so that a later run cannot mix two kinds of pseudonyms."""
    wanted = {"key": work.pseudonyms.file("deidentified"), "options": json.loads(work.options.model_dump_json())}
    wanted["options"]["retain"] = sorted(work.options.retain)
    record = work.out / _RECORD
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != wanted:
        raise ValueError(f"{work.out.name!r} was begun with another key or other options; give an empty folder")
    atomic.write_bytes(record, json.dumps(wanted, indent=1).encode())


def _one(work: _Work, frame: Frame) -> tuple[_Visit, str] | Rejected:
    try:
        return _rewritten(work, frame)
    except Rejected as error:
        return error
    except RecursionError:
        return Rejected("too-deep", "sequences nested too deep to be read")
    except _UNREADABLE as error:
        # The error's own words may quote a value.
        return Rejected("unreadable", f"cannot be read or written as DICOM ({type(error).__name__})")


def _rewritten(work: _Work, frame: Frame) -> tuple[_Visit, str]:
    # The bounded parser goes first: pydicom meets only files that it has found sound.
    image = read_image(frame)
    with open_file(frame) as file, quiet():
        dataset = pydicom.dcmread(file, force=True)
        accession = str(dataset.get("AccessionNumber") or "").strip()
        patient, study = identity_of(dataset, work.options), str(dataset.StudyInstanceUID)
        visit = _Visit(patient=patient, study=study, accession=accession, identities=identities_of(dataset))
        made = work.pseudonyms
        folder = work.out / made.subject(visit.patient) / made.study(visit.study)
        target = folder / f"{_alias(work, frame)}.dcm"
        if target.exists():
            return visit, "skipped"
        if reason := burnt_in_header(dataset):
            raise Rejected("burnt-in-text", f"{reason}: look at it, and give it on by hand if it shows no name")
        if work.options.look_at_pixels:
            frames = stored_frames(image.headers, {(frame.path, frame.member): image}, Limits())
            for header, pixels in zip(image.headers, frames, strict=True):
                if burnt_in_pixels(pixels):
                    raise Rejected("burnt-in-text", f"frame {header.where.frame + 1} shows what looks like letters")
        whole = io.BytesIO()
        deidentify_dataset(dataset, made, work.options).save_as(whole, enforce_file_format=True)
    content = whole.getvalue()
    if any(word.encode() in content for word in _tell_tale(visit)):
        raise Rejected(
            "identity-left", "a name or number of the header is still in the file, as in a comment in its pixels"
        )
    atomic.write_bytes(target, content)
    return visit, "written"


def _tell_tale(visit: _Visit) -> set[str]:
    """What must not be in a file by any way: parts of names and numbers too long to be there by chance."""
    words = re.split(r"[\s^=,\\]+", " ".join([*visit.identities.names, visit.patient, visit.accession]))
    # A shorter run of digits can turn up in one of our own UIDs.
    long = [word for word in words if len(word) >= (8 if word.isdigit() else 5)]
    return {form for word in long for form in (word, word.upper(), word.capitalize())}


def _reports(work: _Work, visits: dict[Frame, _Visit]) -> Iterator[tuple[Path, Rejected | None]]:
    """Reports joined to studies by what their file name is; one that fits no study, or two, is refused."""
    by_key: dict[str, set[_Visit]] = defaultdict(set)
    for visit in visits.values():
        for name in {visit.study, visit.accession, visit.patient} - {""}:
            by_key[name].add(visit)
    for path in _files(work, ".txt"):
        found = by_key.get(path.stem, set())
        studies = {(visit.patient, visit.study) for visit in found}
        try:
            if len(studies) != 1:
                raise Rejected("report-unmatched", f"its name is that of {len(studies)} studies, wanted one")
            if path.stat().st_size > _LONGEST_REPORT:
                raise Rejected("report-too-long", f"more than {_LONGEST_REPORT} bytes")
            patient, study = next(iter(studies))
            names = [name for visit in found for name in visit.identities.names]
            known = [value for visit in found for value in (*visit.identities.identifiers, visit.patient, visit.study)]
            text = deidentify_text(path.read_text(encoding="utf-8-sig"), names=names, identifiers=known)
            target = f"{work.pseudonyms.subject(patient)}_{work.pseudonyms.study(study)}.txt"
            atomic.write_bytes(work.out / "reports" / target, text.encode())
        except (OSError, UnicodeDecodeError):
            yield path, Rejected("report-unreadable", "not readable as UTF-8")
        except Rejected as error:
            yield path, error
        else:
            yield path, None


def _niftis(work: _Work, cut: list[DefacedRow]) -> Iterator[tuple[Path, Rejected | None]]:
    for path in _files(work, ".nii", ".nii.gz"):
        alias = _alias(work, Frame(path=path))
        try:
            volume = read_nifti(path)
            if work.options.deface:
                done = deface(volume)
                volume = done.volume
            # A new header: of the old one nothing is taken over but shape, type of voxel and affine.
            write_nifti(work.out / "nifti" / f"{alias}.nii.gz", volume)
            if work.options.deface:
                cut.append(DefacedRow(file=alias, **done.figures()))
        except Rejected as error:
            # This reader's evidence opens with the file's name, which may be a person's.
            yield path, Rejected(error.reason, error.evidence.replace(path.name, "the file"))
        except ValueError:
            yield path, Rejected("voxel-type", "voxels of a type that is not written; convert them to int32 or float32")
        else:
            yield path, None


def _files(work: _Work, *endings: str) -> list[Path]:
    return sorted(path for path in work.source.rglob("*") if path.name.lower().endswith(endings) and path.is_file())


def _where(work: _Work, frame: Frame) -> str:
    """A file as its alias is made from it: relative to the source, the member of a zip file after a zero."""
    relative = os.path.relpath(frame.path, work.source if work.source.is_dir() else work.source.parent)
    return f"{relative}\0{frame.member}" if frame.member else relative


def _alias(work: _Work, frame: Frame) -> str:
    return work.pseudonyms.file(_where(work, frame))


def _row(work: _Work, frame: Frame, error: Rejected) -> RejectedRow:
    # A row about a whole folder has no file.
    return RejectedRow.of(error, file=_alias(work, frame) if frame.member or frame.path.is_file() else "")


def _originals(work: _Work, visits: dict[Frame, _Visit], frames: list[Frame]) -> Iterator[Original]:
    made = work.pseudonyms
    for visit in visits.values():
        yield Original("subject", made.subject(visit.patient), visit.patient)
        yield Original("study", made.study(visit.study), visit.study)
    for frame in [*frames, *(Frame(path=path) for path in _files(work, ".txt", ".nii", ".nii.gz"))]:
        if frame.member or frame.path.is_file():
            yield Original("file", _alias(work, frame), _where(work, frame).replace("\0", "!"))
