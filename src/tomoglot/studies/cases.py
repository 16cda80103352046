"""Folders of one case each, `<case>/<case><separator><suffix>.nii.gz`, as segmentation challenges hand them out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tomoglot.studies.source import RejectedRow
from tomoglot.studies.study import Series

_IMAGE = re.compile(r"(.+?)\.nii(?:\.gz)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """The files of one case folder: its series, its mask, and what was not understood or is not there."""

    series: tuple[Series, ...]
    mask: Path | None
    rejected: tuple[RejectedRow, ...]


def find_cases(root: Path, name: re.Pattern[str]) -> list[tuple[re.Match[str], Path]]:
    """Case folders whose whole name matches, in `root` or one folder below it (a release's training folder)."""
    below = [root, *sorted(root.iterdir())] if root.is_dir() else []
    children = (child for folder in below if folder.is_dir() for child in sorted(folder.iterdir()) if child.is_dir())
    return [(match, child) for child in children if (match := name.fullmatch(child.name))]


def read_case(
    folder: Path, *, separator: str, sequences: Mapping[str, str], mask: str, subject: str, study: str
) -> CaseFiles:
    """Sort the images of a case folder by their suffix; nothing is opened.

    A suffix that is neither a sequence nor the mask is a row `unknown-file`, a promised sequence that is not there is
    a row `missing-sequence`. A case without a mask is usual (it is what a validation set looks like) and no row.
    """
    found: dict[str, Path] = {}
    rows = []
    where = {"subject": subject, "study": study}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        image = _IMAGE.fullmatch(path.name)
        if image is None:
            continue
        suffix = image[1].removeprefix(f"{folder.name}{separator}")
        if suffix in (*sequences, mask) and image[1] != suffix and suffix not in found:
            found[suffix] = path
        else:
            wanted = ", ".join(f"{separator}{known}" for known in (*sequences, mask))
            evidence = f"its name must be that of its folder with one of {wanted}, each once"
            rows.append(RejectedRow(reason="unknown-file", evidence=evidence, file=path.name, **where))
    for suffix, sequence in sequences.items():
        if suffix not in found:
            evidence = f"the case has no {separator}{suffix}; an incomplete download? The rest of it is used"
            rows.append(RejectedRow(reason="missing-sequence", evidence=evidence, sequence=sequence, **where))
    series = tuple(Series(sequence=name, path=found[suffix]) for suffix, name in sequences.items() if suffix in found)
    return CaseFiles(series=series, mask=found.get(mask), rejected=tuple(rows))
