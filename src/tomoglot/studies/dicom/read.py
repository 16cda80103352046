"""Raw DICOM to studies: files found, headers read, volumes formed and named, people pseudonymised, reports joined.

Nothing of the pixels is read here. Every file that is not used is in a rejected row with its reason; files, subjects
and studies stand in those rows under their pseudonyms.
"""

from __future__ import annotations

import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom

from tomoglot.studies.deidentify.text import deidentify_text
from tomoglot.studies.dicom.elements import DEFLATED, read_elements
from tomoglot.studies.dicom.files import MIB, Limits, find_files, holds_dicom
from tomoglot.studies.dicom.header import Header
from tomoglot.studies.dicom.parse import read_headers
from tomoglot.studies.dicom.values import TAG, free_text, people, quiet, word, words
from tomoglot.studies.dicom.volumes import VolumePlan, group
from tomoglot.studies.naming import Naming, name_series
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.report import read_report
from tomoglot.studies.report_table import ReportTexts, StudyKeys, join
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.structured_report import report_of
from tomoglot.studies.study import Frame, Rejected, Report, Series, Study

_LOOKED_AT = 2000
_REPORT_LIMITS = Limits(max_file_bytes=4 * MIB, max_header_bytes=4 * MIB, max_elements=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A structured report, with the identities it names."""

    where: Frame
    patient_id: str
    study_uid: str
    accession: str
    names: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """A study with the identities it is known by, before they are forgotten."""

    study: Study
    patient_id: str
    study_uid: str
    accession: str
    names: tuple[str, ...]


def matches(path: Path) -> bool:
    """Whether raw DICOM is there: the first 2000 files that are not plainly something else are looked at."""
    return holds_dicom(path, most=_LOOKED_AT)


def read_dicom(
    source: Path,
    *,
    pseudonyms: Pseudonyms,
    reports: ReportTexts | None = None,
    workers: int = 1,
    limits: Limits | None = None,
    resample_tilt: bool = False,
    subject_from_study: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sources:
    """Read every DICOM study below `source`: a folder, a zip file, a DICOMDIR or one file.

    Of several volumes that show one sequence the best is kept: original before derived, 3D before 2D, more slices,
    finer voxels. `reports` are joined by accession, study UID or patient id, and stored without what identifies;
    structured reports among the files count as reports of their study. `resample_tilt` accepts tilted stacks, to be
    resampled when they are read. `subject_from_study` takes each study without a Patient ID for another person.
    `progress` is called with (files read, files in all).

    Raises:
        ValueError: `source` does not exist or holds too many files.
    """
    source = Path(source)
    rows: list[RejectedRow] = []
    headers, written = _read_all(
        source, pseudonyms, rows, workers=workers, limits=limits or Limits(), progress=progress
    )
    studied: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        studied[header.study_uid].append(header)
    visits = []
    for members in studied.values():
        try:
            visit = _visit(
                source, members, pseudonyms, rows, accept_tilt=resample_tilt, subject_from_study=subject_from_study
            )
        except Rejected as error:
            file = _alias(source, members[0].where, pseudonyms)
            study = pseudonyms.study(members[0].study_uid)
            rows.append(RejectedRow.of(_counted(error, members), study=study, file=file))
        else:
            if visit is not None:
                visits.append(visit)
    studies = _with_reports(source, visits, written, reports=reports, pseudonyms=pseudonyms, rows=rows)
    studies.sort(key=lambda study: (study.subject, study.study))
    rows.sort(key=lambda row: (row.subject, row.study, row.sequence, row.reason, row.file))
    return Sources(studies=studies, rejected=rows)


def _read_all(
    source: Path,
    pseudonyms: Pseudonyms,
    rows: list[RejectedRow],
    *,
    workers: int,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Header], list[_Written]]:
    found = find_files(source, limits)
    refused = [(one.where, one.error) for one in found.rejected]
    headers: list[Header] = []
    written: list[_Written] = []
    for done, (frame, result) in enumerate(read_headers(found.frames, workers=workers, limits=limits), start=1):
        if progress is not None and (done % 100 == 0 or done == len(found.frames)):
            progress(done, len(found.frames))
        if not isinstance(result, Rejected):
            headers.extend(result)
        elif result.reason == "structured-report":
            try:
                written.append(_read_written(frame))
            except Rejected as error:
                refused.append((frame, error))
        else:
            refused.append((frame, result))
    rows.extend(RejectedRow.of(error, file=_alias(source, where, pseudonyms)) for where, error in refused)
    # The same result whatever the order in which workers finished.
    headers.sort(key=lambda header: (str(header.where.path), header.where.member, header.where.frame))
    return headers, written


def _read_written(frame: Frame) -> _Written:
    """Read a structured report; the walk that counts its elements and levels comes before pydicom."""
    parsed = read_elements(frame, _REPORT_LIMITS, whole=True)
    if parsed.syntax == DEFLATED:
        raise Rejected("report-unreadable", "a deflated structured report is not read; save it uncompressed")
    top = parsed.elements
    charsets = words(top, TAG["SpecificCharacterSet"])
    if not word(top, TAG["StudyInstanceUID"]):
        raise Rejected("no-identity", "StudyInstanceUID is absent: which study it belongs to cannot be told")
    with quiet():
        try:
            text = report_of(pydicom.dcmread(io.BytesIO(parsed.content), force=True))
        except Rejected:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
            raise Rejected(
                "report-unreadable", f"a structured report makes no sense ({type(error).__name__})"
            ) from None
    return _Written(
        where=frame,
        patient_id=free_text(top, TAG["PatientID"], charsets),
        study_uid=word(top, TAG["StudyInstanceUID"]),
        accession=free_text(top, TAG["AccessionNumber"], charsets),
        names=people(top, charsets),
        text=text,
    )


def _visit(
    source: Path,
    headers: Sequence[Header],
    pseudonyms: Pseudonyms,
    rows: list[RejectedRow],
    *,
    accept_tilt: bool,
    subject_from_study: bool,
) -> _Visit | None:
    """One study: its volumes formed, named, and the best of each name kept. None where nothing usable is left."""
    identity = _one_person(headers, pseudonyms, subject_from_study=subject_from_study)
    alias = {"subject": pseudonyms.subject(identity), "study": pseudonyms.study(headers[0].study_uid)}

    def refuse(members: Sequence[Header], error: Rejected, sequence: str = "") -> None:
        file = _alias(source, members[0].where, pseudonyms)
        rows.append(RejectedRow.of(_counted(error, members), file=file, sequence=sequence, **alias))

    grouped = group(headers, accept_tilt=accept_tilt)
    for members, error in grouped.refused:
        refuse(members, error)
    best: dict[str, VolumePlan] = {}
    for volume in sorted(grouped.volumes, key=_merit):
        naming = name_series(volume.acquisition)
        if naming.sequence is None:
            refuse(volume.headers, _unnamed(naming))
        elif naming.sequence in best:
            kept = " x ".join(map(str, best[naming.sequence].shape))
            found = f"{' x '.join(map(str, volume.shape))} voxels; another volume of {kept} is kept"
            refuse(volume.headers, Rejected(f"another-{naming.sequence}", found), naming.sequence)
        else:
            best[naming.sequence] = volume
    if not best:
        found = f"{len(grouped.volumes)} volumes of {len(headers)} images, none of a sequence that is known and used"
        refuse(headers, Rejected("no-usable-series", found))
        return None
    series = []
    for name, volume in sorted(best.items()):
        called = _alias(source, volume.frames[0], pseudonyms)
        # The frames say where the files are. The path is a name for messages, which may not hold the source's own.
        tilted = bool(volume.tilt_deg)
        series.append(Series(sequence=name, path=Path(called), frames=volume.frames, alias=called, untilt=tilted))
    accessions = Counter(header.accession for header in headers if header.accession)
    return _Visit(
        study=Study(subject=alias["subject"], study=alias["study"], series=tuple(series)),
        patient_id=identity,
        study_uid=headers[0].study_uid,
        accession=accessions.most_common(1)[0][0] if accessions else "",
        names=tuple(sorted({name for header in headers for name in header.names})),
    )


def _one_person(headers: Sequence[Header], pseudonyms: Pseudonyms, *, subject_from_study: bool) -> str:
    people = {pseudonyms.subject(one) if one.strip(" \0") else "": one for one in {h.patient_id for h in headers}}
    if len(people) > 1:
        raise Rejected(
            "two-subjects", f"the images of one study name {len(people)} different patients; sort them first"
        )
    identity = next(iter(people.values()))
    if "" not in people:
        return identity
    if not subject_from_study:
        raise Rejected(
            "no-patient-id",
            "no Patient ID: two visits of one person could land on two sides of a split. Where every study is of "
            "another person, say so (subject from study)",
        )
    return headers[0].study_uid


def _merit(volume: VolumePlan) -> tuple[object, ...]:
    """Sorts the best first, and always in the same order."""
    acquisition, first = volume.acquisition, volume.headers[0]
    kind = {word.upper() for word in acquisition.image_type[:2]}
    steps_mm = (volume.affine[:3, :3] ** 2).sum(axis=0) ** 0.5
    return (
        "ORIGINAL" not in kind,
        "PRIMARY" not in kind,
        acquisition.acquisition_type != "3D",
        -volume.shape[2],
        round(float(steps_mm.prod()), 6),
        volume.part,
        first.series_number if first.series_number is not None else 1 << 40,
        first.series_uid,
        first.sop_uid,
    )


def _unnamed(naming: Naming) -> Rejected:
    kind = naming.kind if naming.kind != "image" else "unknown"
    return Rejected(f"{kind}-sequence" if kind == "unknown" else kind, "; ".join(naming.evidence))


def _counted(error: Rejected, members: Sequence[Header]) -> Rejected:
    return Rejected(error.reason, f"{len(members)} images: {error.evidence}") if len(members) > 1 else error


def _with_reports(
    source: Path,
    visits: Sequence[_Visit],
    written: Sequence[_Written],
    *,
    reports: ReportTexts | None,
    pseudonyms: Pseudonyms,
    rows: list[RejectedRow],
) -> list[Study]:
    """Join reports by the identities of the studies, then take out of their text what identifies."""
    places = {visit.study_uid: place for place, visit in enumerate(visits)}
    own: dict[int, list[_Written]] = defaultdict(list)
    for one in written:
        place = places.get(one.study_uid)
        if place is None or _differs(one, visits[place], pseudonyms):
            error = Rejected("report-unmatched", "a structured report whose study, or patient, is not among the images")
            rows.append(RejectedRow.of(error, file=_alias(source, one.where, pseudonyms)))
        else:
            own[place].append(one)
    keys = []
    for place, visit in enumerate(visits):
        texts = list(dict.fromkeys(one.text for one in own[place]))
        if len(texts) > 1:
            error = Rejected("report-conflict", f"{len(texts)} different structured reports, so none is used")
            rows.append(RejectedRow.of(error, subject=visit.study.subject, study=visit.study.study))
        keys.append(
            StudyKeys(
                subject=visit.patient_id,
                study=(visit.study_uid,),
                accession=visit.accession,
                own=read_report(texts[0]) if len(texts) == 1 else None,
                row=(visit.study.subject, visit.study.study),
            )
        )
    joined = join(reports or ReportTexts(reports=()), keys, alias=pseudonyms.file)
    rows.extend(joined.rejected)
    return [
        replace(visit.study, report=None if report is None else _cleaned(report, visit, own[place]))
        for place, (visit, report) in enumerate(zip(visits, joined.reports, strict=True))
    ]


def _differs(one: _Written, visit: _Visit, pseudonyms: Pseudonyms) -> bool:
    return bool(one.patient_id.strip(" \0")) and pseudonyms.subject(one.patient_id) != visit.study.subject


def _cleaned(report: Report, visit: _Visit, written: Sequence[_Written]) -> Report:
    names = {*visit.names, *(name for one in written for name in one.names)}
    identifiers = {visit.patient_id, visit.study_uid, visit.accession, *(one.accession for one in written)} - {""}
    said = {"names": sorted(names), "identifiers": sorted(identifiers)}
    text = deidentify_text(report.text, **said)
    cleaned = read_report(text)
    # A table may have given the sections apart from the text.
    return replace(
        cleaned,
        findings=deidentify_text(report.findings, **said) if report.findings else cleaned.findings,
        impression=deidentify_text(report.impression, **said) if report.impression else cleaned.impression,
    )


def _alias(source: Path, where: Frame, pseudonyms: Pseudonyms) -> str:
    if where.path == source and source.is_dir():
        # The row is about many files.
        return ""
    relative = os.path.relpath(where.path, source if source.is_dir() else source.parent)
    return pseudonyms.file(f"{relative}\0{where.member}" if where.member else relative)
