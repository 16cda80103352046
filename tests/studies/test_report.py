"""Reports: sections and sentences."""

import time

from tomoglot.studies.report import read_report, sentences

REPORT = """TECHNIQUE: Multi-sequence MRI. Contrast was given.

FINDINGS:
There is a 1.5 cm mass in the left frontal lobe, approx. 3 mm from
the cortex. No midline shift.

IMPRESSION: 1. Left frontal mass. 2. Otherwise normal.
"""


def test_sections_are_told_apart_and_the_text_is_kept():
    report = read_report(REPORT)
    assert report.text == REPORT.strip()
    assert report.findings.startswith("There is a 1.5 cm mass") and report.findings.endswith("No midline shift.")
    assert report.impression == "1. Left frontal mass. 2. Otherwise normal."


def test_headings_on_one_line_alone_on_a_line_and_none_at_all():
    report = read_report("FINDINGS: A cyst. IMPRESSION: Benign.")
    assert (report.findings, report.impression) == ("A cyst.", "Benign.")
    report = read_report("Findings\nA cyst.\nConclusion\nBenign.")
    assert (report.findings, report.impression) == ("A cyst.", "Benign.")
    report = read_report("A cyst. The findings are benign: no impression on the cortex.")
    assert (report.findings, report.impression) == ("", "")


def test_sentences_keep_decimals_and_abbreviations_whole():
    assert sentences(REPORT) == [
        "Multi-sequence MRI.",
        "Contrast was given.",
        "There is a 1.5 cm mass in the left frontal lobe, approx. 3 mm from the cortex.",
        "No midline shift.",
        "Left frontal mass.",
        "Otherwise normal.",
    ]


def test_list_items_and_empty_lines_end_a_sentence():
    assert sentences("- no bleed\n- no mass\n\nnormal study") == ["no bleed", "no mass", "normal study"]
    assert sentences("") == [] and sentences(" \n. !\n") == []


def test_time_grows_with_the_length_and_not_with_its_square():
    for text in (
        "FINDINGS " * 20_000,
        "." * 100_000,
        "a " * 50_000,
        " " * 100_000 + "x",
        "\n" * 100_000,
        "e.g. " * 20_000,
    ):
        start = time.process_time()
        sentences(text)
        read_report(text)
        assert time.process_time() - start < 3.0
