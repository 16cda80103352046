"""Splits: stable under growth, by subject, digested; a subject on two sides is refused and not named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoglot.studies.split import check_split, split_digest, split_subjects

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


SUBJECTS = st.sets(st.text(min_size=1, max_size=5), max_size=8)


@given(SUBJECTS, SUBJECTS, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_adding_subjects_never_moves_another(first, more, seed):
    before = split_subjects(first, fractions=FRACTIONS, seed=seed)
    after = split_subjects(first | more, fractions=FRACTIONS, seed=seed)
    assert {subject: after[subject] for subject in first} == before


def test_shares_are_near_the_fractions_and_a_share_of_zero_stays_empty():
    sides = list(split_subjects(map(str, range(4000)), fractions=FRACTIONS | {"never": 0.0}, seed=3).values())
    for side, share in FRACTIONS.items():
        assert abs(sides.count(side) / 4000 - share) < 0.03
    assert "never" not in sides


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    subjects = [f"s{number}" for number in range(100)]
    assert split_subjects(subjects, fractions=FRACTIONS, seed=0) == split_subjects(
        reversed(subjects), fractions=FRACTIONS, seed=0
    )
    assert split_subjects(subjects, fractions=FRACTIONS, seed=0) != split_subjects(
        subjects, fractions=FRACTIONS, seed=1
    )


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions"):
        split_subjects(["a"], fractions=fractions, seed=0)


def test_a_subject_on_two_sides_is_counted_and_not_named():
    with pytest.raises(ValueError, match="1 of 2 subjects") as caught:
        check_split([("Erika Mustermann", "train"), ("Erika Mustermann", "test"), ("other", "train")])
    assert "Erika" not in str(caught.value)
    check_split([("a", "train"), ("a", "train"), ("b", "test")])


def test_the_digest_follows_the_split_and_not_its_order():
    assert split_digest({"a": "train", "b": "test"}) == split_digest({"b": "test", "a": "train"})
    assert split_digest({"a": "train", "b": "test"}) != split_digest({"a": "test", "b": "train"})
