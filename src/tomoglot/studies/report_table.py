"""Reports from a table in any column names, or a file each, and their way to the studies they were written about.

A report names its study by accession, by study (its name or UID), by subject and study, or by subject alone. It goes
to a study only where what it names is that study and no other; the rest is listed, never spread over candidates.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tomoglot.studies.encoding import check_text, decode
from tomoglot.studies.report import read_report
from tomoglot.studies.source import RejectedRow
from tomoglot.studies.study import Rejected, Report
from tomoglot.studies.table import cell_text, read_cells

KEYS = ("accession", "study", "subject")
TEXTS = ("report", "findings", "impression")
IGNORE = "ignore"
# Compared in lower case without anything but letters and digits.
_GUESSES = {
    "accession": "accession accessionnumber accessionno accessionid accno accnr accnum acc",
    "study": "study studyid studyuid studyinstanceuid exam examid visit session",
    "subject": "subject subjectid patient patientid patid pid mrn participant participantid",
    "report": "report reporttext reportbody text fulltext narrative radiologyreport bericht",
    "findings": "findings finding findingsen observations befund findingstext",
    "impression": "impression impressions impressionsen conclusion conclusions opinion beurteilung",
}
_OURS = {guess: ours for ours, guesses in _GUESSES.items() for guess in guesses.split()}
_DELIMITERS = ",;\t|"
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportText:
    """One report and what it says of its study; `stem` is the name of a file that held it, without its ending."""

    report: Report
    accession: str = ""
    study: str = ""
    subject: str = ""
    stem: str = ""
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTexts:
    """Reports as read, before they are joined, with rows of what could not be read and which encodings were assumed."""

    reports: tuple[ReportText, ...]
    rejected: tuple[RejectedRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyKeys:
    """What a study goes by, `own`, the report it came with, and `row`: its subject and study in the rejected table.

    The keys may identify a person (raw DICOM); only `row` is ever written.
    """

    subject: str
    study: tuple[str, ...]
    accession: str = ""
    own: Report | None = None
    row: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A report or None for each study, in their order, and what was refused on the way."""

    reports: tuple[Report | None, ...]
    rejected: tuple[RejectedRow, ...]


def read_reports(path: Path, *, columns: Mapping[str, str] | None = None, encoding: str | None = None) -> ReportTexts:
    """Read reports from a table (CSV, TSV, JSON lines, Parquet) or from a folder with one `.txt` file a report.

    `columns` maps names in the table to accession, study, subject, report, findings, impression or ignore; names it
    leaves out are guessed from common spellings. A report cell may be the name of a `.txt` file beside the table.
    `encoding` names the encoding of text files; without it, it is found or the file is refused (`encoding.decode`).

    Raises:
        ValueError: nothing there is a table or folder of reports, a column cannot be found (the nearest is named), or
            a table's encoding cannot be told.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, encoding)
    if not path.is_file():
        raise ValueError(f"reports: {path.name!r} does not exist; give a table, or a folder of .txt files")
    rows, assumed = _rows(path, encoding)
    names = _columns(sorted({name for row in rows for name in row}), columns or {}, path.name) if rows else {}
    found: list[ReportText] = []
    rejected: list[RejectedRow] = []
    for number, row in enumerate(rows, start=1):
        cells = {ours: text for theirs, ours in names.items() if (text := cell_text(row.get(theirs))) is not None}
        try:
            if one := _from_row(cells, number, root=path.parent, encoding=encoding):
                found.append(one)
        except Rejected as error:
            evidence = f"row {number} of the report table: {error.evidence}"
            rejected.append(RejectedRow(reason=error.reason, evidence=evidence))
    if assumed:
        rejected.append(_assumption(assumed, len(found)))
    return ReportTexts(reports=tuple(found), rejected=tuple(rejected))


def join(texts: ReportTexts, studies: Sequence[StudyKeys], *, alias: Callable[[str], str] = str) -> Joined:
    """Give each study the report that names it; `alias` stands for a file's name in the rejected rows.

    Rows: `report-unmatched` names no study here, `report-ambiguous` could be about several, `report-conflict` is one
    of several that name one study with different words (none of them is used), besides what `texts` has already.
    """
    index = _Index(studies)
    candidates: dict[int, list[Report]] = defaultdict(list)
    for place, study in enumerate(studies):
        if study.own is not None:
            candidates[place].append(study.own)
    rejected = [row.model_copy(update={"file": row.file and alias(row.file)}) for row in texts.rejected]
    for one in texts.reports:
        try:
            candidates[index.place(one)].append(one.report)
        except Rejected as error:
            where = f"the report in row {one.row} of the table " if one.row else "the report of this file "
            file = alias(f"{one.stem}.txt") if one.stem else ""
            rejected.append(RejectedRow(reason=error.reason, evidence=where + error.evidence, file=file))
    reports: list[Report | None] = [None] * len(studies)
    for place, found in candidates.items():
        words = {_SPACES.sub(" ", report.text).strip() for report in found}
        if len(words) == 1:
            reports[place] = found[0]
            continue
        subject, name = studies[place].row
        evidence = f"{len(words)} different reports are given for this study, so none is used; keep the right one"
        rejected.append(RejectedRow(subject=subject, study=name, reason="report-conflict", evidence=evidence))
    return Joined(reports=tuple(reports), rejected=tuple(rejected))


def report_of_sections(report: str, findings: str = "", impression: str = "") -> Report:
    """One report of a whole text, of its sections, or of both; sections win over what the text is split into."""
    if not findings and not impression:
        return read_report(report)
    sections = (("FINDINGS", findings), ("IMPRESSION", impression))
    text = report.strip() or "\n".join(f"{title}: {words.strip()}" for title, words in sections if words.strip())
    split = read_report(text)
    return replace(
        split, findings=findings.strip() or split.findings, impression=impression.strip() or split.impression
    )


class _Index:
    """Places of the studies by each kind of name."""

    def __init__(self, studies: Sequence[StudyKeys]) -> None:
        self._by: dict[tuple[str, ...], set[int]] = defaultdict(set)
        self._subjects = [study.subject for study in studies]
        for place, study in enumerate(studies):
            self._by["subject", study.subject].add(place)
            for name in study.study:
                self._by["study", name].add(place)
                self._by["both", study.subject, name].add(place)
                self._by["file", f"{study.subject}_{name}"].add(place)
            if study.accession:
                self._by["accession", study.accession].add(place)

    def place(self, one: ReportText) -> int:
        """The one study that a report names."""
        named = self._named(one)
        if not named:
            raise Rejected("report-unmatched", "names no study that was read; are its keys written as in the studies?")
        if len(named) > 1:
            raise Rejected("report-ambiguous", f"could be about {len(named)} studies; name the accession or the study")
        place = next(iter(named))
        if one.subject and self._subjects[place] != one.subject and self._by.get(("subject", one.subject)):
            raise Rejected("report-ambiguous", "names a study of one subject and another subject, who is here too")
        return place

    def _named(self, one: ReportText) -> set[int]:
        by = self._by.get
        if one.stem:
            exact = by(("file", one.stem), set())
            short = (by((kind, one.stem), set()) for kind in ("accession", "study", "subject"))
            return exact or set().union(*short)
        if one.accession:
            # Many archives name a study by its accession.
            return by(("accession", one.accession), set()) | by(("study", one.accession), set())
        if one.study and one.subject:
            return by(("both", one.subject, one.study), set())
        return by(("study", one.study), set()) if one.study else by(("subject", one.subject), set())


def _from_row(cells: Mapping[str, str], number: int, *, root: Path, encoding: str | None) -> ReportText | None:
    parts = [cells.get(name, "") for name in TEXTS]
    if not any(parts):
        return None
    keys = {name: cells[name] for name in KEYS if name in cells}
    if not keys:
        raise Rejected("report-unmatched", "names neither accession nor study nor subject")
    if "\n" not in parts[0] and parts[0].lower().endswith(".txt"):
        parts[0] = _file_text(root, parts[0], encoding)
    for part in parts:
        check_text(part)
    return ReportText(report=report_of_sections(*parts), row=number, **keys)


def _file_text(root: Path, name: str, encoding: str | None) -> str:
    file = (root / name).resolve()
    if not file.is_relative_to(root.resolve()):
        raise Rejected("report-outside", "its file lies outside the table's folder")
    try:
        return decode(file.read_bytes(), encoding=encoding)[0]
    except OSError as error:
        raise Rejected("report-absent", "its file cannot be read") from error


def _from_folder(folder: Path, encoding: str | None) -> ReportTexts:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".txt" and path.is_file())
    if not files:
        raise ValueError(f"reports: no .txt file in the folder {folder.name!r}")
    found: list[ReportText] = []
    rejected: list[RejectedRow] = []
    assumed: Counter[str] = Counter()
    for file in files:
        try:
            text, name = decode(file.read_bytes(), encoding=encoding)
            check_text(text)
        except (OSError, Rejected) as error:
            refusal = error if isinstance(error, Rejected) else Rejected("report-unreadable", "cannot be read")
            rejected.append(RejectedRow.of(refusal, file=file.name))
            continue
        assumed[name] += not name.startswith("utf") and encoding is None
        found.append(ReportText(report=read_report(text), stem=file.stem))
    rejected.extend(_assumption(name, count) for name, count in sorted(assumed.items()) if count)
    return ReportTexts(reports=tuple(found), rejected=tuple(rejected))


def _assumption(encoding: str, count: int) -> RejectedRow:
    evidence = f"{count} reports are used as {encoding}, which their bytes fit and the other encodings tried do not"
    return RejectedRow(reason="report-encoding-assumed", evidence=evidence)


def _rows(path: Path, encoding: str | None) -> tuple[list[dict[str, Any]], str]:
    """Rows of a table, and its encoding where that was assumed."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return read_cells(path), ""
    try:
        text, name = decode(path.read_bytes(), encoding=encoding)
        header = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])
        delimiter = max(_DELIMITERS, key=header.count)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (Rejected, csv.Error) as error:
        raise ValueError(f"{path.name}: cannot be read as a table of reports: {error}") from None
    # Python's reader puts what has no column under None, and gives None for a cell that is not there.
    torn = sum(None in row or None in row.values() for row in rows)
    if torn:
        raise ValueError(f"{path.name}: {torn} rows have more or fewer cells than its first line; is a quote missing?")
    return rows, "" if name.startswith("utf") or encoding else name


def _columns(found: Sequence[str], given: Mapping[str, str], table: str) -> dict[str, str]:
    """Their column names to ours: as given, and guessed for the rest."""
    listed = ", ".join(found)
    for theirs, ours in given.items():
        if ours not in (*KEYS, *TEXTS, IGNORE):
            raise ValueError(f"report columns: {ours!r} is none of {', '.join((*KEYS, *TEXTS, IGNORE))}")
        if theirs not in found:
            near = difflib.get_close_matches(theirs, found, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"report columns: {table} has no column {theirs!r} among {listed}{hint}")
    names = dict(given)
    for theirs in found:
        guess = _OURS.get(_flat(theirs))
        if theirs not in given and guess is not None and guess not in given.values():
            names[theirs] = guess
    twice = [ours for ours, count in Counter(names.values()).items() if count > 1 and ours != IGNORE]
    for ours in twice:
        both = " and ".join(repr(theirs) for theirs in names if names[theirs] == ours)
        raise ValueError(f"{table}: {both} both look like the {ours}; say which with --report-column NAME={ours}")
    for wanted, what in ((TEXTS, "the report"), (KEYS, "the study")):
        if not set(wanted) & set(names.values()):
            guesses = [guess for ours in wanted for guess in _GUESSES[ours].split()]
            near = [theirs for theirs in found if difflib.get_close_matches(_flat(theirs), guesses, n=1)]
            hint = f", perhaps {near[0]!r}" if near else ""
            one = f"{near[0] if near else 'NAME'}={wanted[0]}"
            raise ValueError(f"{table}: no column of {listed} is {what}{hint}; say which with --report-column {one}")
    return names


def _flat(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
