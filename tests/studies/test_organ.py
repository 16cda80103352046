"""The organ of a study is read off the findings that are known of it."""

from tomoglot.studies.organ import NORMAL, ORGANS, organ_of


def test_every_organ_has_its_own_findings_and_a_normal() -> None:
    names = [name for findings in ORGANS.values() for name in findings if name != NORMAL]
    assert len(names) == len(set(names))
    assert all(findings.count(NORMAL) == 1 for findings in ORGANS.values())
    assert {organ: len(findings) for organ, findings in ORGANS.items()} == {"brain": 8, "liver": 8, "chest": 19}


def test_known_findings_tell_the_organ_and_normal_alone_does_not() -> None:
    assert organ_of(["normal", "hcc"]) == "liver"
    assert organ_of(["infarct"]) == "brain"
    assert organ_of(["normal"]) == organ_of([]) == organ_of(["fracture"]) == "other"
    # A table that labels a stray finding of another organ does not move a study.
    assert organ_of([*ORGANS["brain"], "cyst"]) == "brain"
