"""Bytes of a report into text: what is certain is taken, what is a guess is said, what is ambiguous is refused.

Reports come as UTF-8, as UTF-16 (Windows), as Windows-1252 (Western Europe), Shift-JIS or GB 18030. The first two show
themselves. Of the rest, any bytes are some text in most of them, so one is taken only where it reads as a language and
the others do not. Nothing else is guessed: Windows-1254 (Turkish), 1250, 1251 and their like must be named.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

from tomoglot.studies.study import Rejected

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What the bytes of a UTF-8 letter become when they are read as Windows-1252 (or Latin-1): a lead letter, and a
# continuation byte, which no Western word has after it.
_TAILS = "".join(bytes([byte]).decode("cp1252", errors="ignore") for byte in range(0x80, 0xC0))
_MOJIBAKE = re.compile(f"[ÂÃ][\x80-\xbf{re.escape(_TAILS)}]|â[€\x80]|ï¿½|ï»¿|\ufffd")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
# Letters of Windows-1252 that are Turkish or Polish ones in 1254 and 1250, and rare in Western medical text.
_DOUBTFUL = frozenset("ðÐþÞýÝ¹³¼¾")
_FAR, _PLAIN = re.compile("[^\x00-\x7f]"), re.compile("[A-Za-z]")
_BETWEEN_LETTERS = frozenset("’'-–—·\xad")


def decode(data: bytes, *, encoding: str | None = None) -> tuple[str, str]:
    """Text of a report, or of a table of reports, and the encoding it is in; `encoding` names it and ends the search.

    The text may still hold what was broken before: `check_text` each report.

    Raises:
        Rejected: `report-encoding` where the encoding cannot be told or is not the one named, `report-mojibake` where
            text of an encoding that was told by its looks does not look right after all.
        ValueError: there is no encoding of the name given.
    """
    if encoding is not None:
        try:
            return data.decode(encoding).removeprefix("\ufeff"), encoding
        except LookupError:
            raise ValueError(f"there is no text encoding {encoding!r}; for instance cp1254, cp1250, euc-kr") from None
        except UnicodeDecodeError as error:
            what = f"byte {error.start} of {len(data)} is not {encoding}"
            raise Rejected("report-encoding", f"{what}; leave the encoding out to have it found") from None
    for name in (*_wide(data), "utf-8"):
        if (text := _strict(data, name)) is not None:
            return text.removeprefix("\ufeff"), name
    fits = {name: text for name, reads in _LANGUAGES.items() if (text := _strict(data, name)) and reads(text)}
    if len(fits) != 1:
        tried = "as none of " + ", ".join(("utf-8", "utf-16", *_LANGUAGES)) if not fits else "as " + " or ".join(fits)
        high = sum(byte > 127 for byte in data)
        raise Rejected("report-encoding", f"{high} of {len(data)} bytes are outside ASCII and read {tried}; name it")
    name, text = next(iter(fits.items()))
    check_text(text)
    return text, name


def check_text(text: str) -> None:
    """Refuse text that holds letters broken by a wrong encoding, or what is no letter.

    Raises:
        Rejected: `report-mojibake`, `report-encoding`.
    """
    broken, odd = len(_MOJIBAKE.findall(text)), len(_CONTROL.findall(text))
    if broken:
        evidence = f"{broken} letters were broken before this was written (UTF-8 read as something else, or lost)"
        raise Rejected("report-mojibake", f"{evidence}; export it again as UTF-8")
    if odd:
        raise Rejected("report-encoding", f"{odd} control characters, which are no text; export it again, or name it")


def _wide(data: bytes) -> list[str]:
    """UTF-16 or 32 by its mark, or UTF-16 without one by the zeros that every second byte of Western text is."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return [name]
    pairs = len(data) // 2
    if len(data) % 2 == 0 and pairs:
        even, odd = data[::2].count(0), data[1::2].count(0)
        if odd > 0.4 * pairs and even == 0:
            return ["utf-16-le"]
        if even > 0.4 * pairs and odd == 0:
            return ["utf-16-be"]
    return []


def _strict(data: bytes, name: str) -> str | None:
    try:
        return data.decode(name)
    except UnicodeDecodeError:
        return None


def _western(text: str) -> bool:
    """Accented letters inside words of plain ones, and signs that stand beside letters but not between them."""
    letters = 0
    for match in _FAR.finditer(text):
        letter, before, after = match[0], text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        letters += letter.isalpha()
        if letter in _DOUBTFUL:
            return False
        if not letter.isalpha() and before.isalpha() and after.isalpha() and letter not in _BETWEEN_LETTERS:
            return False
    if text.count("¿") > text.count("?"):  # Spanish closes what it opens; a Polish ż closes nothing
        return False
    # A word of nothing but accented letters is Greek or Cyrillic read wrongly.
    return letters <= 0.3 * len(_PLAIN.findall(text)) and not re.search(r"[\u00c0-\u00ff]{3}", text)


def _japanese(text: str) -> bool:
    far = _FAR.findall(text)
    kana = sum("\u3041" <= letter <= "\u30fc" for letter in far)
    half_width = sum("\uff61" <= letter <= "\uff9f" for letter in far)
    return kana >= 0.15 * len(far) and half_width <= 0.05 * len(far) and _east_asian(far)


def _chinese(text: str) -> bool:
    # Nine tenths of the characters of any Chinese text are among the 3,755 of GB 2312's first level (rows B0 to D7).
    # Korean in EUC-KR fills rows B0 to C8 and no other, Japanese in EUC-JP has kana where GB 2312 has them too.
    far = _FAR.findall(text)
    rows = [letter.encode("gb2312", errors="replace")[0] for letter in far]
    common, late = sum(0xB0 <= row <= 0xD7 for row in rows), sum(0xC9 <= row <= 0xD7 for row in rows)
    signs = sum(row in (0xA1, 0xA3) for row in rows)
    kana = any("\u3041" <= letter <= "\u30fc" for letter in far)
    return common + signs >= 0.9 * len(far) and common >= 0.5 * len(far) and late >= 0.15 * len(far) and not kana


def _east_asian(letters: list[str]) -> bool:
    return sum(unicodedata.east_asian_width(letter) in "WFHA" for letter in letters) >= 0.95 * len(letters)


_LANGUAGES = {"cp1252": _western, "cp932": _japanese, "gb18030": _chinese}
