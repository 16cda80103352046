"""Sequence names: the field's spellings lead to one name each."""

import pytest

from tomoglot.studies.sequence import KNOWN_SEQUENCES, base_sequence, canonical_sequence, sequence_in_file_name
from tomoglot.studies.study import Rejected


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("T1ce", "t1c"), ("T1Gd", "t1c"), ("T1POST", "t1c"), ("t1-c", "t1c"), ("T1W", "t1w"), ("T1", "t1w"),
        ("MPRAGE", "t1w"),
        ("T2W", "t2w"), ("T2-FLAIR", "flair"), ("flair", "flair"), ("T2starw", "t2s"), ("T2*", "t2s"), ("PDw", "pd"),
        ("ADC map", "adc"), ("DWI", "dwi"), ("my_Sequence2", "my_sequence2"), ("inphase-1", "inphase_1"),
        ("InPhase", "in_phase"), ("out-of-phase", "out_of_phase"), ("Portal Venous", "portal_venous"), ("TOF", "mra"),
        ("CTA", "ct_angiography"), ("CECT", "ct_contrast"), ("fMRI", "bold"), ("DWI-b1000", "dwi_b1000"),
    ],
)  # fmt: skip
def test_a_name_has_one_spelling(given, wanted):
    assert canonical_sequence(given) == wanted


@pytest.mark.parametrize("name", KNOWN_SEQUENCES)
def test_a_canonical_name_stays_itself(name):
    assert canonical_sequence(name) == name


@pytest.mark.parametrize("given", ["", "  ", "../x", "a;b", "naïve", "x" * 41])
def test_an_untidy_name_is_refused(given):
    with pytest.raises(Rejected) as caught:
        canonical_sequence(given)
    assert caught.value.reason == "bad-sequence-name"


def test_a_file_name_may_tell_the_sequence():
    assert sequence_in_file_name("sub-01_ses-02_FLAIR.nii.gz") == "flair"
    assert sequence_in_file_name("case7-t1ce.nii") == "t1c"
    assert sequence_in_file_name("image.nii.gz") is None


def test_a_b_value_and_a_phase_are_parts_of_a_name_that_can_be_left_out():
    assert [base_sequence(name) for name in ("dwi_b1000", "dwi_b0", "ct_arterial", "ct_angiography")] == [
        "dwi", "dwi", "ct", "ct",
    ]  # fmt: skip
    assert [base_sequence(name) for name in ("dwi", "dwi_bx", "t1c", "arterial", "ct_of_mine")] == [
        "dwi", "dwi_bx", "t1c", "arterial", "ct_of_mine",
    ]  # fmt: skip
