"""Keyed pseudonyms: one secret key turns an identity into the same alias every time, and no alias back into it.

Whoever holds the key can test a guessed identity against an alias: the key is kept like the identities themselves.
A mapping table (alias to original) is a separate file, private to its owner, and written only where it is asked for.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import hmac
import os
import secrets
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tomoglot.studies import atomic
from tomoglot.studies.study import Rejected

_SHORTEST_KEY = 16
_LONGEST_KEY = 1 << 16
_LONGEST_SHIFT_DAYS = 3650
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Original(NamedTuple):
    """One line of a mapping table: what kind of thing it is, its alias, and what it was."""

    kind: str
    alias: str
    original: str


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Aliases made with HMAC-SHA256 of a normalised identity under one key; each kind of alias is independent.

    Identities are compared without white space at their ends, in Unicode's composed form; a subject's also without
    regard to upper and lower case and to runs of spaces, which differ between the systems that name one person.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) < _SHORTEST_KEY:
            raise ValueError(f"a pseudonym key has {len(self.key)} bytes, wanted {_SHORTEST_KEY} or more")

    @classmethod
    def from_file(cls, path: Path) -> Pseudonyms:
        """Read the key in `path`; where there is no such file, make one of 32 random bytes that only you can read.

        Raises:
            ValueError: others may read the file, or it holds too few or too many bytes for a key.
        """
        path = Path(path)
        if not path.exists():
            _create(path)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"the key {path.name!r} is not a file")
        if os.name == "posix" and status.st_mode & _OTHERS:
            mode = stat.S_IMODE(status.st_mode)
            raise ValueError(f"the key {path.name!r} has mode {mode:o}, so others may read it: chmod 600 it")
        if not _SHORTEST_KEY <= status.st_size <= _LONGEST_KEY:
            raise ValueError(
                f"the key {path.name!r} has {status.st_size} bytes, wanted {_SHORTEST_KEY} to {_LONGEST_KEY}"
            )
        return cls(path.read_bytes())

    def subject(self, patient_id: str) -> str:
        """Alias of a subject: `s` and 12 base32 letters.

        60 bits: among a million subjects, some two meet with a chance of 1 in 2 million.
        """
        return "s" + self._letters("subject", _person(patient_id))

    def study(self, study_uid: str) -> str:
        """Alias of a study: `v` and 12 base32 letters."""
        return "v" + self._letters("study", _tidy(study_uid))

    def uid(self, uid: str) -> str:
        """A DICOM UID in place of another: `2.25.` and a 128-bit number (PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest('uid', _tidy(uid))[:16], 'big')}"

    def file(self, name: str) -> str:
        """Alias of a file: `f` and 12 base32 letters. Nothing is normalised: two names are two files."""
        return "f" + self._letters("file", name)

    def days(self, patient_id: str) -> int:
        """How far this subject's dates are moved: -3650 to -1 days, the same for every date of the subject."""
        drawn = int.from_bytes(self._digest("days", _person(patient_id))[:8], "big")
        return -1 - drawn % _LONGEST_SHIFT_DAYS

    def _letters(self, kind: str, identity: str) -> str:
        return base64.b32encode(self._digest(kind, identity)).decode("ascii")[:12].lower()

    def _digest(self, kind: str, identity: str) -> bytes:
        # Undecodable bytes of a file name are lone surrogates, which plain UTF-8 refuses.
        message = f"{kind}\0{identity}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, message, hashlib.sha256).digest()


def write_mapping(path: Path, rows: Iterable[Original]) -> None:
    """Write a table `kind,alias,original` that only you can read; an older one is replaced whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The scratch file is private from its first byte on, and stays so under its final name.
    with atomic.scratch(path) as part:
        with part.open("w", encoding="utf-8", errors="surrogatepass", newline="") as table:
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(Original._fields)
            writer.writerows(sorted(set(rows)))
        atomic.flush(part)
        part.replace(path)
    atomic.flush(path.parent)


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.scratch(path) as part:
        part.write_bytes(secrets.token_bytes(32))
        atomic.flush(part)
        # A link, not a rename: of two processes that make the key at once one wins, and both read the winner's.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(part)
    atomic.flush(path.parent)


def _tidy(identity: str) -> str:
    """An identity without the padding that DICOM allows; an empty one is refused: it would make strangers one."""
    tidy = unicodedata.normalize("NFC", identity).strip(" \0\t\r\n")
    if not tidy:
        raise Rejected(
            "no-identity", "an empty identity has no pseudonym: use the study's UID where there is no patient id"
        )
    return tidy


def _person(patient_id: str) -> str:
    return " ".join(_tidy(patient_id).casefold().split())
