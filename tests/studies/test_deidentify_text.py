"""Report text: identifiers go, medicine stays, and hostile text costs no more than its length."""

import re
import time

import pytest
from report_sentences import CLEAN, CLEAN_HELD_OUT, HELD_OUT, IDENTIFYING

from tomoglot.studies.deidentify.text import deidentify_text, rules, words

# Words of a marked phrase that identify nobody.
NOBODY = {
    "Dr",
    "DR",
    "Mr",
    "Mrs",
    "Ms",
    "MD",
    "Prof",
    "Nurse",
    "Herr",
    "Frau",
    "Mme",
    "Sra",
    "Kollege",
    "OA",
    "med",
    "and",
    "de",
}
NOBODY |= {"yo", "years", "con"}


def left_over(marked: str) -> list[str]:
    """Marked phrases of which a word is still there."""
    out = re.sub(r"\[.*?\]", "", deidentify_text(re.sub("[«»]", "", marked)))
    left = set(re.findall(r"\w+", out))
    phrases = re.findall("«(.*?)»", marked)
    return [phrase for phrase in phrases if {w for w in re.findall(r"\w+", phrase) if len(w) > 1} - NOBODY & left]


def recall(sentences: list[str]) -> tuple[int, int]:
    return sum(len(left_over(line)) for line in sentences), sum(line.count("«") for line in sentences)


def test_the_sets_are_as_large_as_they_claim() -> None:
    assert len(IDENTIFYING) >= 120
    assert len(CLEAN) + len(CLEAN_HELD_OUT) >= 180
    assert not any("«" in line for line in CLEAN + CLEAN_HELD_OUT)


def test_nothing_marked_is_left_in_the_sentences_the_rules_were_made_for() -> None:
    assert [line for line in IDENTIFYING if left_over(line)] == []


def test_what_is_missed_in_held_out_sentences_is_known() -> None:
    # At first sight of these, 9 of 60 were missed; three are left that no rule of this kind finds.
    assert recall(HELD_OUT) == (3, 60)


@pytest.mark.parametrize("text", [CLEAN, CLEAN_HELD_OUT], ids=["made-for", "held-out"])
def test_medicine_stays_as_it_is(text: list[str]) -> None:
    assert [(line, deidentify_text(line)) for line in text if deidentify_text(line) != line] == []


def test_a_whole_report_keeps_its_sections() -> None:
    text = "Patient: Doe, Jane\nMRN: 123456\n\nFINDINGS:\nNo mass. Fazekas 1.\n\nIMPRESSION:\nNormal.\n\nDr. A. Smith"
    clean = deidentify_text(text)
    assert clean == "Patient: [name]\nMRN: [id]\n\nFINDINGS:\nNo mass. Fazekas 1.\n\nIMPRESSION:\nNormal.\n\nDr. [name]"
    assert deidentify_text(clean) == clean


@pytest.mark.parametrize(
    "form",
    [
        "Jane Doe has a mass.", "DOE, JANE has a mass.", "doe has a mass", "Jane's mass.", "J. Doe has a mass.",
        "Doe J has a mass.", "Ms. Doe-Müller has a mass.", "Mueller has a mass.", "MULLER has a mass.", "janedoe@x.org",
    ],
)  # fmt: skip
def test_a_known_name_goes_in_all_its_forms(form: str) -> None:
    clean = deidentify_text(form, names=["Doe-Müller^Jane^^Dr", "Doe^Jane", "Müller^J"])
    assert not re.search(r"jane|doe|m(ü|ue|u)ller|\bJ\b", clean, re.IGNORECASE)


def test_a_known_name_that_is_a_word_goes_only_where_it_is_a_name() -> None:
    clean = deidentify_text("White matter is normal. Mr White and Jane White; white matter.", names=["White^Jane"])
    assert clean == "White matter is normal. Mr [name] and [name]; white matter."
    assert deidentify_text("The brain is normal. Dr. Brain.", names=["Brain^W"]) == "The brain is normal. Dr. [name]."


def test_names_in_other_scripts_go() -> None:
    assert "山田" not in deidentify_text("山田太郎さんの頭部MRI", names=["Yamada^Tarou=山田^太郎=やまだ^たろう"])
    assert "Иванов" not in deidentify_text("Пациент Иванов обследован", names=["Иванов^Иван"])


def test_known_numbers_and_places_go() -> None:
    clean = deidentify_text("Seen at Foo Bar; file AB-77, ab-77.", identifiers=["Foo Bar", "AB-77", "x"])
    assert clean == "Seen at [id]; file [id], [id]."


@pytest.mark.parametrize("number", range(len(rules())))
def test_every_rule_is_needed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = rules()[:number] + rules()[number + 1 :]
    everything = [re.sub("[«»]", "", line) for line in IDENTIFYING + HELD_OUT]
    before = [deidentify_text(line) for line in everything]
    monkeypatch.setattr("tomoglot.studies.deidentify.text.rules", lambda: kept)
    assert before != [deidentify_text(line) for line in everything], rules()[number].pattern.pattern[:80]


HOSTILE = [
    "A ",
    "Dr ",
    "1.",
    "0 ",
    "a@",
    "1/",
    "Ab-",
    "Patient: ",
    "X.",
    "Dr. A. ",
    "Name:a ",
    "Rd 1 ",
    "555 ",
    "Hospital ",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear_in_the_length_of_hostile_text(piece: str) -> None:
    def seconds(length: int) -> float:
        text = (piece * length)[:length]
        began = time.process_time()
        deidentify_text(text, names=["Doe^Jane"])
        return time.process_time() - began

    deidentify_text("warm")
    # Four times the text; a quadratic rule would take sixteen times as long.
    assert seconds(16_000) < 9 * max(seconds(4_000), 0.01)


def test_word_lists_are_in_lower_case_and_disjoint() -> None:
    assert all(word == word.casefold() for word in words("NOT_NAMES") | words("EPONYMS"))
    assert not words("NOT_NAMES") & words("EPONYMS")
