"""BIDS folders: `sub-*/[ses-*/]anat/*_<suffix>.nii[.gz]`, what a series shows told by its suffix and entities.

Brain Imaging Data Structure 1.10, "Magnetic resonance imaging: anatomy imaging data". Files are not opened here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tomoglot.studies.sequence import known_sequence
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.study import Rejected, Series, Study
from tomoglot.studies.table import read_table

_FOLDERS = ("anat", "dwi", "ct")
_FILE = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9]+_)*)(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?")
_MASK_SUFFIXES = ("mask", "dseg")
_NOT_MAGNITUDE = ("phase", "real", "imag")


def matches(root: Path) -> bool:
    """A folder with at least one `sub-*/anat` or `sub-*/ses-*/anat` (or `dwi`, `ct`)."""
    return any(any(root.glob(f"sub-*/{between}{name}")) for between in ("", "ses-*/") for name in _FOLDERS)


def read_bids(root: Path) -> Sources:
    """Read the studies of a BIDS folder; each session is one study, a subject without sessions has one.

    `participants.tsv`, where it is there, gives `split` and `label:<finding>` a subject. A file whose name tells no
    known sequence, and a second run of one, are rejected rows.

    Raises:
        ValueError: there is no `sub-*` folder, or `participants.tsv` cannot be read.
    """
    folders = sorted(folder for folder in root.glob("sub-*") if folder.is_dir())
    if not folders:
        raise ValueError(f"{root.name!r} has no sub-* folder, so it is not BIDS")
    people = _participants(root / "participants.tsv")
    studies: list[Study] = []
    rejected: list[RejectedRow] = []
    for folder in folders:
        sessions = sorted(child for child in folder.glob("ses-*") if child.is_dir()) or [folder]
        for session in sessions:
            study, refused = _read_session(folder.name, session, people.get(folder.name))
            rejected.extend(refused)
            if study is not None:
                studies.append(study)
    return Sources(studies=studies, rejected=rejected)


def _read_session(subject: str, session: Path, person: Study | None) -> tuple[Study | None, list[RejectedRow]]:
    found: dict[str, Path] = {}
    rejected: list[RejectedRow] = []
    mask: Path | None = None
    places = [session, *(session / name for name in _FOLDERS)]
    files = sorted(path for place in places if place.is_dir() for path in place.glob("*.nii*") if path.is_file())
    for path in files:
        try:
            sequence = _sequence(path)
            if sequence == "mask":
                mask = mask or path
            elif found.setdefault(sequence, path) != path:
                evidence = f"{path.name}: a second {sequence} of the same study, {found[sequence].name} is kept"
                raise Rejected("duplicate-series", evidence)
        except Rejected as error:
            rejected.append(RejectedRow.of(error, subject=subject, study=session.name, file=path.name))
    if not files:
        return None, rejected
    series = tuple(Series(sequence=sequence, path=path) for sequence, path in found.items())
    labels = dict(person.labels) if person is not None else {}
    split = person.split if person is not None else None
    study = Study(subject=subject, study=session.name, series=series, labels=labels, mask=mask, split=split)
    return study, rejected


def _sequence(path: Path) -> str:
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise Rejected("not-bids", f"{path.name}: wanted <entity>-<value>_..._<suffix>.nii.gz")
    entities = dict(entity.split("-", 1) for entity in match["entities"].rstrip("_").split("_") if entity)
    if match["suffix"].lower() in _MASK_SUFFIXES:
        return "mask"
    if entities.get("part", "mag") in _NOT_MAGNITUDE:
        raise Rejected("not-magnitude", f"{path.name}: part-{entities['part']}, wanted the magnitude")
    sequence = known_sequence(match["suffix"])
    if sequence is None:
        raise Rejected("unknown-suffix", f"{path.name}: the suffix {match['suffix']!r} names no known sequence")
    # A contrast agent makes a T1 another sequence; on the others it changes little and keeps the name.
    return "t1c" if sequence == "t1w" and "ce" in entities else sequence


def _participants(path: Path) -> Mapping[str, Study]:
    """What `participants.tsv` says of each subject, as a study without series."""
    if not path.is_file():
        return {}
    people = read_table(path, columns={"participant_id": "subject"}).studies
    return {person.subject: person for person in people}
