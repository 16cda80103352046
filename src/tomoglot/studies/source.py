"""Where studies come from: a table, a known layout, a BIDS folder or raw DICOM, all into the same records."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from tomoglot.studies.split import check_split
from tomoglot.studies.study import Rejected, Study

if TYPE_CHECKING:
    from tomoglot.studies.pseudonym import Pseudonyms
    from tomoglot.studies.report_table import ReportTexts

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TABLE_NAMES = tuple(f"studies{suffix}" for suffix in TABLE_SUFFIXES)


class RejectedRow(BaseModel):
    """One line of the rejected table: what was refused, a reason that can be counted, and the evidence.

    `subject` and `study` are here because this table stays with the data; they never go into a message or a log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str = ""
    study: str = ""
    sequence: str = ""
    file: str = ""
    reason: str
    evidence: str = ""

    @classmethod
    def of(
        cls, error: Rejected, *, subject: str = "", study: str = "", sequence: str = "", file: str = ""
    ) -> RejectedRow:
        """Row of a refusal, with the place it was met. `file` is a file name, without its folders."""
        where = {"subject": subject, "study": study, "sequence": sequence, "file": file}
        return cls(reason=error.reason, evidence=error.evidence, **where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a reader found: studies whose files are not opened yet, and what it could not make sense of."""

    studies: list[Study]
    rejected: list[RejectedRow]


def read_source(
    path: Path,
    *,
    layout: str | None = None,
    reports: Path | None = None,
    columns: Mapping[str, str] | None = None,
    report_columns: Mapping[str, str] | None = None,
    report_encoding: str | None = None,
    pseudonyms: Pseudonyms | Callable[[], Pseudonyms] | None = None,
    workers: int = 1,
    resample_tilt: bool = False,
    subject_from_study: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sources:
    """Read studies from a table, a folder with a `studies` table, a known layout, a BIDS folder, or raw DICOM.

    `layout` names the layout and skips the search. `columns` maps the names in a table of studies to ours. `reports`
    adds reports from a table or a folder of `.txt` files, joined by accession, study, subject and study, or subject
    (`report_table`, which takes `report_columns` and `report_encoding`). Raw DICOM is read with `pseudonyms` only
    (or a call that makes them, where a key shall not be made for nothing); `workers`, `resample_tilt`,
    `subject_from_study` and `progress` are for it alone (`dicom.read`).

    Raises:
        ValueError: nothing there can be read as studies (what was looked for is said), a split given by the user puts
            one subject on two sides, columns are mapped and there is no table, or DICOM comes without pseudonyms.
    """
    # Each reader builds Sources, so it imports this module: this module reaches back only when asked to read.
    from tomoglot.studies import bids, layouts, report_table, table

    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path.name!r} does not exist; give a table of studies or a folder that holds them")
    texts = None
    if reports is not None:
        texts = report_table.read_reports(Path(reports), columns=report_columns, encoding=report_encoding)
    is_table = path.is_file() and path.suffix.lower() in TABLE_SUFFIXES
    found = path if is_table else next((path / name for name in TABLE_NAMES if (path / name).is_file()), None)
    if columns and (found is None or layout is not None):
        raise ValueError("columns are mapped, and what is read is no table of studies")
    if layout is not None:
        sources = layouts.read(layout, path)
    elif found is not None:
        sources = table.read_table(found, columns=columns)
    elif (name := layouts.detect(path)) is not None:
        sources = layouts.read(name, path)
    elif bids.matches(path):
        sources = bids.read_bids(path)
    else:
        how = {"workers": workers, "resample_tilt": resample_tilt, "subject_from_study": subject_from_study}
        # Reports are joined where the identifiers they name are still at hand.
        sources, texts = _read_dicom(path, pseudonyms, reports=texts, progress=progress, **how), None
    if texts is not None:
        sources = _with_reports(sources, texts)
    check_split((study.subject, study.split) for study in sources.studies if study.split is not None)
    return sources


def _read_dicom(path: Path, pseudonyms: Pseudonyms | Callable[[], Pseudonyms] | None, **how: Any) -> Sources:
    from tomoglot.studies import layouts

    can_read = importlib.util.find_spec("pydicom") is not None
    if can_read:
        from tomoglot.studies.dicom import read
    if not can_read or not read.matches(path):
        raise ValueError(
            f"nothing in {path.name!r} reads as studies: looked for a table ({', '.join(TABLE_NAMES)}), the known "
            f"layouts ({', '.join(layouts.names())}), BIDS folders (sub-*/[ses-*/]anat) "
            + ("and DICOM files" if can_read else "but for no DICOM: that needs pip install 'tomoglot[dicom]'")
            + "; give the table itself, or name the layout"
        )
    if pseudonyms is None:
        raise ValueError(
            f"{path.name!r} holds raw DICOM, which names people: give a key file for their pseudonyms (--key FILE, "
            "made on first use). Keep it: the same key gives the same names"
        )
    made = pseudonyms() if callable(pseudonyms) else pseudonyms
    return read.read_dicom(path, pseudonyms=made, **how)


def _with_reports(sources: Sources, texts: ReportTexts) -> Sources:
    from tomoglot.studies.report_table import StudyKeys, join

    keys = [
        StudyKeys(subject=study.subject, study=(study.study,), own=study.report, row=(study.subject, study.study))
        for study in sources.studies
    ]
    joined = join(texts, keys)
    studies = [replace(study, report=report) for study, report in zip(sources.studies, joined.reports, strict=True)]
    return Sources(studies=studies, rejected=[*sources.rejected, *joined.rejected])
