"""Pseudonyms: stable under one key, unlike under another, and never readable by others."""

import os
import re
import stat
import threading
from pathlib import Path

import pytest

from tomoglot.studies.pseudonym import Original, Pseudonyms, write_mapping
from tomoglot.studies.study import Rejected

KEY = bytes(range(32))
HERE = Pseudonyms(KEY)
FROZEN = ("sxvjcubgrn5vq", "vdkxg4uhgham2", "2.25.323208961630152073077901537594917788276", "f6xckuqfdgtlj", -1400)


def test_aliases_do_not_move_between_versions() -> None:
    # Frozen: a store made last year must meet a report table pseudonymised today.
    found = HERE.subject("12345"), HERE.study("1.2.3"), HERE.uid("1.2.3"), HERE.file("a/b.dcm"), HERE.days("12345")
    assert found == FROZEN


def test_an_alias_has_the_promised_form() -> None:
    assert re.fullmatch(r"s[a-z2-7]{12}", HERE.subject("12345"))
    assert re.fullmatch(r"v[a-z2-7]{12}", HERE.study("1.2.3"))
    assert re.fullmatch(r"f[a-z2-7]{12}", HERE.file("x"))
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", HERE.uid("1.2.3"))
    assert len(HERE.uid("1.2.3")) <= 64


def test_one_person_written_in_several_ways_is_one_subject() -> None:
    ways = ["Abc 12", " abc  12 ", "ABC 12\0", "abc 12\r\n"]
    assert len({HERE.subject(way) for way in ways}) == 1
    assert len({HERE.days(way) for way in ways}) == 1
    assert HERE.subject("mu\u0308ller") == HERE.subject("m\u00fcller")


def test_aliases_of_different_kinds_and_keys_have_nothing_in_common() -> None:
    other = Pseudonyms(KEY[::-1])
    bodies = [made("1.2.3")[1:] for made in (HERE.subject, HERE.study, HERE.file, other.subject, other.study)]
    assert len(set(bodies)) == len(bodies)
    assert HERE.uid("1.2.3") != other.uid("1.2.3")


def test_a_date_shift_is_never_zero_and_stays_in_its_range() -> None:
    days = [HERE.days(str(number)) for number in range(5000)]
    assert min(days) >= -3650
    assert max(days) <= -1
    assert len(set(days)) > 2000


def test_ten_thousand_subjects_get_ten_thousand_aliases() -> None:
    assert len({HERE.subject(str(number)) for number in range(10_000)}) == 10_000


def test_an_empty_identity_is_refused_so_that_strangers_are_not_made_one() -> None:
    for empty in ("", "  ", "\0"):
        with pytest.raises(Rejected, match="no-identity"):
            HERE.subject(empty)


def test_a_short_key_is_refused_and_no_key_is_shown() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        Pseudonyms(b"x" * 15)
    assert "\\x" not in repr(HERE)
    assert str(KEY) not in repr(HERE)


def test_a_missing_key_is_made_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    first = Pseudonyms.from_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 32
    assert Pseudonyms.from_file(path) == first
    assert Pseudonyms.from_file(tmp_path / "other") != first
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["key", "other"]


def test_many_who_make_one_key_at_once_share_it(tmp_path: Path) -> None:
    made: list[Pseudonyms] = []
    threads = [threading.Thread(target=lambda: made.append(Pseudonyms.from_file(tmp_path / "key"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len({one.key for one in made}) == 1


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o610])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(mode)
    with pytest.raises(ValueError, match=f"{mode:o}.*chmod 600"):
        Pseudonyms.from_file(path)


def test_an_empty_key_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    with pytest.raises(ValueError, match="0 bytes"):
        Pseudonyms.from_file(path)
    with pytest.raises(ValueError, match="not a file"):
        Pseudonyms.from_file(tmp_path)


def test_a_mapping_is_private_sorted_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "mapping.csv"
    path.write_text("old")
    path.chmod(0o644)
    row = Original("subject", "sabc", 'Doe, "Jane"')
    write_mapping(path, [row, Original("file", "fabc", "a.dcm"), row])
    assert path.read_text() == 'kind,alias,original\nfile,fabc,a.dcm\nsubject,sabc,"Doe, ""Jane"""\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["mapping.csv"]
