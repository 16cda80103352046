"""Seeded damage to DICOM files: bits flipped, files cut, lengths overwritten, elements doubled, nesting deepened."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import pydicom.data

_SHORT_ELEMENT = re.compile(rb"[\x08\x10\x18\x20\x28]\0[\0-\xff]{2}(?:CS|DA|DS|IS|LO|PN|SH|TM|UI|US)", re.DOTALL)


# Listed here: pydicom's own lister would fetch more of them from elsewhere.
PACKAGED = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))


def originals(*, most_bytes: int = 3_000_000) -> list[bytes]:
    """pydicom's packaged files, in the order of their names; nothing is fetched."""
    return [path.read_bytes() for path in PACKAGED if path.stat().st_size <= most_bytes]


def mutate(files: list[bytes], *, seed: int) -> bytes:
    """One mutant: a file drawn by `seed`, damaged once to three times."""
    draw = random.Random(seed)
    content = bytearray(draw.choice(files))
    for _ in range(draw.randint(1, 3)):
        draw.choice((_flip, _cut, _lengthen, _double, _deepen))(content, draw)
    return bytes(content)


def _place(content: bytearray, draw: random.Random) -> int:
    # Headers are where the harm is: three in four changes are in the first kilobytes.
    end = len(content) if draw.random() < 0.25 else min(len(content), 4096)
    return draw.randrange(0, max(1, end))


def _flip(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 16)):
        if content:
            content[_place(content, draw)] ^= 1 << draw.randrange(8)


def _cut(content: bytearray, draw: random.Random) -> None:
    del content[_place(content, draw) :]


def _elements(content: bytearray) -> list[int]:
    return [match.start() for match in _SHORT_ELEMENT.finditer(bytes(content[:65536]))]


def _lengthen(content: bytearray, draw: random.Random) -> None:
    places = _elements(content)
    if places:
        at = draw.choice(places) + 6
        content[at : at + 2] = struct.pack("<H", draw.choice((0, 1, 7, 0x7FFF, 0xFFFF, draw.randrange(65536))))
    elif len(content) > 8:
        at = _place(content, draw)
        content[at : at + 4] = struct.pack("<I", draw.choice((0, 0xFFFFFFFF, 0x7FFFFFFF, draw.randrange(1 << 32))))


def _double(content: bytearray, draw: random.Random) -> None:
    places = _elements(content)
    if places:
        at = draw.choice(places)
        (length,) = struct.unpack_from("<H", content, at + 6)
        element = bytearray(content[at : at + 8 + length])
        if len(element) > 8 and draw.random() < 0.7:
            element[draw.randrange(8, len(element))] ^= 1 << draw.randrange(7)
        content[at:at] = element


def _deepen(content: bytearray, draw: random.Random) -> None:
    places = _elements(content)
    if places:
        levels = draw.choice((2, 15, 40, 3000))
        begin = b"\x40\0\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
        at = draw.choice(places)
        content[at:at] = begin * levels + end * draw.choice((levels, levels, levels // 2))
