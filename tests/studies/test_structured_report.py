"""A structured report becomes text whose sections are found again; a hostile one becomes a reason."""

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tomoglot.studies.report import read_report
from tomoglot.studies.structured_report import report_of
from tomoglot.studies.study import Rejected


def code(meaning, value="1"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "99X", meaning
    return item


def item(kind, name="", *, children=(), relation="CONTAINS", **fields):
    made = Dataset()
    made.ValueType, made.RelationshipType = kind, relation
    if name:
        made.ConceptNameCodeSequence = Sequence([code(name)])
    for field, value in fields.items():
        setattr(made, field, value)
    if children:
        made.ContentSequence = Sequence(list(children))
    return made


def number(name, value, unit):
    measured = Dataset()
    measured.NumericValue = value
    measured.MeasurementUnitsCodeSequence = Sequence([code("unit", unit)])
    return item("NUM", name, MeasuredValueSequence=Sequence([measured]))


def report(*children):
    return item("CONTAINER", "Diagnostic imaging report", children=children)


def test_sections_codes_and_numbers_are_kept_and_who_observed_is_not():
    dataset = report(
        item("PNAME", "Observer name", relation="HAS OBS CONTEXT", PersonName="Canary^Carla"),
        item("TEXT", "Observer organisation", relation="HAS OBS CONTEXT", TextValue="Canary Hospital"),
        item("PNAME", "Physician", PersonName="Canary^Carl"),
        item("DATE", "Date of report", Date="19991231"),
        item(
            "CONTAINER",
            "Findings",
            children=[
                item("TEXT", "Finding", TextValue="A mass in the left lobe.\r\nNo bleeding."),
                item("CODE", "Laterality", ConceptCodeSequence=Sequence([code("Left")])),
                number("Diameter", "12.5", "mm"),
            ],
        ),
        item("CONTAINER", "Impressions", children=[item("TEXT", "Impression", TextValue="Mass, probably glioma.")]),
        item("CONTAINER", "Conclusions", children=[item("TEXT", TextValue="Follow up.")]),
    )
    text = report_of(dataset)
    assert "Canary" not in text and "1999" not in text
    split = read_report(text)
    assert "A mass in the left lobe.\nNo bleeding." in split.findings
    assert "Laterality: Left\nDiameter: 12.5 mm" in split.findings
    assert split.impression == "Mass, probably glioma.\nFollow up."


def test_a_tree_deeper_or_longer_than_any_report_is_refused():
    deep = item("TEXT", "Finding", TextValue="x")
    for _ in range(30):
        deep = item("CONTAINER", "Findings", children=[deep])
    for dataset, reason in (
        (report(deep), "report-too-deep"),
        (report(*(item("TEXT", TextValue="x") for _ in range(10_001))), "report-too-long"),
        (report(*(item("TEXT", TextValue="x" * 100_000) for _ in range(11))), "report-too-long"),
        (report(item("CONTAINER", "Findings")), "not-a-report"),
        (Dataset(), "not-a-report"),
        (report(item("TEXT", TextValue="gr\u00c3\u00b6\u00c3\u0178er")), "report-mojibake"),
        ({"ContentSequence": [5]}, "report-unreadable"),
    ):
        with pytest.raises(Rejected) as caught:
            report_of(dataset)
        assert caught.value.reason == reason
