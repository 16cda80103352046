"""What layouts share: folders of one case each, and series gathered into studies with what was refused on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.study import Series, Study

_IMAGE = re.compile(r"(.+?)\.nii(?:\.gz)?")


def find_cases(root: Path, name: re.Pattern[str]) -> list[tuple[re.Match[str], Path]]:
    """Case folders whose whole name matches, in `root` or one folder below it (a release's training folder)."""
    below = [root, *sorted(root.iterdir())] if root.is_dir() else []
    children = (child for folder in below if folder.is_dir() for child in sorted(folder.iterdir()) if child.is_dir())
    return [(match, child) for child in children if (match := name.fullmatch(child.name))]


class Gathered:
    """Series and refusals as a layout's files are gone through; of two that show the same, the better is kept."""

    def __init__(self) -> None:
        self.rejected: list[RejectedRow] = []
        self._kept: dict[tuple[str, str], dict[str, tuple[tuple[Any, ...], Series]]] = {}

    def add(self, subject: str, study: str, series: Series, *, rank: tuple[Any, ...] = ()) -> None:
        """Take a series in. A second of its sequence is a row `another-<sequence>`: the one of lower rank stays."""
        found = self._kept.setdefault((subject, study), {})
        both = [found[series.sequence]] if series.sequence in found else []
        best, *rest = sorted([*both, (rank, series)], key=lambda one: one[0])
        found[series.sequence] = best
        for _, other in rest:
            evidence = f"another series of this study shows the same, and is kept: {best[1].path.name}"
            reason = f"another-{series.sequence}"
            self.refuse(reason, evidence, other.path, subject=subject, study=study, sequence=series.sequence)

    def refuse(self, reason: str, evidence: str, path: Path | None = None, **where: str) -> None:
        """Add a rejected row; `where` names subject, study and sequence as far as they are known."""
        self.rejected.append(RejectedRow(reason=reason, evidence=evidence, file=path.name if path else "", **where))

    def sources(self, said: Callable[[str, str], Mapping[str, Any]]) -> Sources:
        """All studies that have a series, each with what is said of (subject, study): labels, mask, report, split."""
        studies = [
            Study(subject=key[0], study=key[1], series=tuple(series for _, series in found.values()), **said(*key))
            for key, found in self._kept.items()
        ]
        return Sources(studies=studies, rejected=self.rejected)


def add_case(
    gathered: Gathered, folder: Path, *, separator: str, sequences: Mapping[str, str], mask: str, where: tuple[str, str]
) -> Path | None:
    """Sort the images of a case folder, `<case><separator><suffix>.nii.gz`, by their suffix; the mask is given back.

    A suffix that is neither a sequence nor the mask is a row `unknown-file`, a promised sequence that is not there is
    a row `missing-sequence`. A case without a mask is usual (it is what a validation set looks like) and no row.
    """
    found: dict[str, Path] = {}
    subject, study = where
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
            gathered.refuse("unknown-file", evidence, path, subject=subject, study=study)
    for suffix, sequence in sequences.items():
        if suffix in found:
            gathered.add(subject, study, Series(sequence=sequence, path=found[suffix]))
        else:
            evidence = f"the case has no {separator}{suffix}; an incomplete download? The rest of it is used"
            gathered.refuse("missing-sequence", evidence, subject=subject, study=study, sequence=sequence)
    return found.get(mask)
