"""Where studies come from: a table, a BIDS folder or a known public layout, all into the same records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tomoglot.studies.report import read_report
from tomoglot.studies.split import check_split
from tomoglot.studies.study import Rejected, Report, Study

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


def read_source(path: Path, *, layout: str | None = None, reports: Path | None = None) -> Sources:
    """Read studies from a table file, a folder with a `studies` table, a BIDS folder or a known public layout.

    `layout` names the layout and skips the search. `reports` adds reports from a folder of `.txt` files (named
    `<subject>_<study>.txt`, `<study>.txt` or `<subject>.txt`) or from a table with a report column.

    Raises:
        ValueError: nothing there can be read as studies (what was looked for is said), or a split given by the
            user puts one subject on two sides.
    """
    # Each reader builds Sources, so it imports this module: this module reaches back only when asked to read.
    from tomoglot.studies import bids, layouts, table

    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path.name!r} does not exist; give a table of studies or a folder that holds them")
    found = next((path / name for name in TABLE_NAMES if (path / name).is_file()), None)
    if layout is not None:
        sources = layouts.read(layout, path)
    elif path.is_file():
        sources = table.read_table(path)
    elif found is not None:
        sources = table.read_table(found)
    elif bids.matches(path):
        sources = bids.read_bids(path)
    elif (name := layouts.detect(path)) is not None:
        sources = layouts.read(name, path)
    else:
        raise ValueError(
            f"nothing in {path.name!r} reads as studies: looked for a table ({', '.join(TABLE_NAMES)}), BIDS folders "
            f"(sub-*/[ses-*/]anat) and the known layouts ({', '.join(layouts.names())}); give the table itself, or "
            "name the layout"
        )
    if reports is not None:
        sources = _with_reports(sources, Path(reports))
    check_split((study.subject, study.split) for study in sources.studies if study.split is not None)
    return sources


def _with_reports(sources: Sources, reports: Path) -> Sources:
    texts, rejected = _texts_of(reports)
    visits = Counter(study.subject for study in sources.studies)
    names = Counter(study.study for study in sources.studies)
    studies = []
    for study in sources.studies:
        report = _report_of(study, texts, only_visit=visits[study.subject] == 1, only_name=names[study.study] == 1)
        studies.append(study if study.report is not None or report is None else replace(study, report=report))
    return Sources(studies=studies, rejected=[*sources.rejected, *rejected])


def _report_of(study: Study, texts: Mapping[str, Report], *, only_visit: bool, only_name: bool) -> Report | None:
    keys = [f"{study.subject}_{study.study}"]
    # A short name is used only where it can mean one study and no other.
    keys += [study.study] if only_name else []
    keys += [study.subject] if only_visit else []
    return next((texts[key] for key in keys if key in texts), None)


def _texts_of(reports: Path) -> tuple[dict[str, Report], Iterable[RejectedRow]]:
    from tomoglot.studies import table

    if reports.is_file():
        read = table.read_table(reports)
        with_report = [study for study in read.studies if study.report is not None]
        texts = {f"{study.subject}_{study.study}": study.report for study in with_report if study.report}
        by_subject = {study.subject: study.report for study in with_report if study.report}
        return by_subject | texts, [row for row in read.rejected if row.reason.startswith(("report", "conflicting"))]
    if not reports.is_dir():
        raise ValueError(f"reports: {reports.name!r} does not exist; give a folder of .txt files or a table")
    found: dict[str, Report] = {}
    rejected = []
    for file in sorted(reports.glob("*.txt")):
        try:
            found[file.stem] = read_report(file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError):
            rejected.append(RejectedRow(file=file.name, reason="report-unreadable", evidence="not readable as UTF-8"))
    if not found and not rejected:
        raise ValueError(f"reports: no .txt file in the folder {reports.name!r}")
    return found, rejected
