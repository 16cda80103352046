"""What a DICOMweb server has: the studies that are wanted, and the instances of each (QIDO-RS, PS3.18 sec. 10.6)."""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tomoglot.studies.dicomweb.origin import Origin
from tomoglot.studies.study import Rejected

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_DATE, _ACCESSION, _MODALITIES, _IN_STUDY = "00080020", "00080050", "00080061", "00201208"
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")
# A backslash, a comma or a wild card would ask for more than the one that is meant (PS3.4, C.2.2.2).
_NUMBER = re.compile(r"[^\\*?,\x00-\x1f\x7f]{1,64}")


class Instance(NamedTuple):
    """The UIDs of one instance: they go into addresses and are compared, never into a message."""

    study: str
    series: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which studies: every condition given has to hold; `study_uids` and `accessions` name studies one by one.

    All series of such a study are pulled, its reports among them, whatever `modality` says.
    """

    modality: str | None = None
    since: dt.date | None = None
    until: dt.date | None = None
    study_uids: tuple[str, ...] = ()
    accessions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.modality or self.since or self.until or self.study_uids or self.accessions):
            raise ValueError("say which studies: a modality, dates, or a file of study UIDs or accession numbers")
        if self.modality and not re.fullmatch("[A-Z]{2,16}", self.modality):
            raise ValueError("a modality is DICOM's code in capitals: MR, CT, PT")
        if self.since and self.until and self.since > self.until:
            raise ValueError("the first date is after the last one")
        wrong = sum(_UID.fullmatch(one) is None for one in self.study_uids)
        wrong += sum(_NUMBER.fullmatch(one) is None for one in self.accessions)
        if wrong:
            raise ValueError(f"{wrong} study UIDs or accession numbers are malformed: one a line, no wild cards")

    def queries(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Each query to make, with the identifier that it looks for ("" where it looks for none)."""
        conditions = {_MODALITIES: self.modality} if self.modality else {}
        if self.since or self.until:
            conditions[_DATE] = "-".join(f"{day:%Y%m%d}" if day else "" for day in (self.since, self.until))
        named = [(_STUDY, uid) for uid in self.study_uids] + [(_ACCESSION, number) for number in self.accessions]
        for tag, identifier in dict.fromkeys(named):
            yield identifier, {tag: identifier} | conditions
        if not named:
            yield "", conditions


def read_identifiers(path: Path) -> tuple[str, ...]:
    """Study UIDs or accession numbers from a UTF-8 text file, one a line; empty lines and those after # are not."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found or any("\ufffd" in line for line in found):
        raise ValueError(f"{path.name!r} names nothing, or is not UTF-8 text; write one identifier a line")
    return found


def find_studies(origin: Origin, query: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield the UID of each study that answers a query, and how many instances it is said to have (0: not said).

    Raises:
        Rejected: among others `filter-ignored`, where an answer does not meet the query: the server would give studies
            that nobody asked for.
    """
    fields = {"includefield": f"{_ACCESSION},{_MODALITIES},{_IN_STUDY}"}
    for uid, item in _pages(origin, "/studies", {**query, **fields}, _STUDY):
        if not all(_meets(item, tag, asked) for tag, asked in query.items()):
            raise Rejected("filter-ignored", "the server lists studies that were not asked for: name them by UID")
        count = "".join(map(str, _values(item, _IN_STUDY)))
        yield uid, int(count) if count.isdecimal() else 0


def list_instances(origin: Origin, study: str) -> list[Instance]:
    """Every instance of a study, by series."""
    instances: list[Instance] = []
    for series, _ in _pages(origin, f"/studies/{study}/series", {}, _SERIES):
        found = _pages(origin, f"/studies/{study}/series/{series}/instances", {}, _INSTANCE)
        instances += [Instance(study, series, uid) for uid, _ in found]
    return instances


def _pages(origin: Origin, path: str, query: Mapping[str, str], tag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Asked on until a page is empty: a server may give fewer than the page asked for when there are more. What came in
    # several pages is asked for once more as one: Orthanc 1.10 counts the offset inside the limit when a modality is
    # asked for, so that all but the first page would be lost without a word.
    seen: set[str] = set()
    limit, offset = origin.limits.page, 0
    while len(seen) <= origin.limits.listed:
        asked: dict[str, str | int] = {**query, "limit": limit, "offset": offset}
        page = origin.retrying(functools.partial(origin.read_list, path, asked))
        fresh = {uid: item for item in page if (uid := _uid(item, tag)) not in seen}
        yield from fresh.items()
        seen.update(fresh)
        offset += len(page)
        if not fresh and len(seen) < limit:
            return
        if not fresh:
            limit, offset = 2 * len(seen) + 1, 0
    raise Rejected("listing-too-long", f"over {origin.limits.listed} answers to one query; ask for less")


def _uid(item: Mapping[str, Any], tag: str) -> str:
    # It becomes part of an address: anything but a UID could lead elsewhere on the server.
    found = _values(item, tag)
    if len(found) != 1 or not _UID.fullmatch(str(found[0])):
        raise Rejected("bad-listing", "the server lists something without a proper UID")
    return str(found[0])


def _meets(item: Mapping[str, Any], tag: str, asked: str) -> bool:
    values = [str(value).strip().casefold() for value in _values(item, tag)]
    if tag == _DATE:
        first, last = asked.split("-")
        return any(first <= value <= (last or "9") for value in values if value)
    return asked.casefold() in values


def _values(item: Mapping[str, Any], tag: str) -> list[Any]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []
