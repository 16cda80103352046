"""Which studies are walked and by what their maps are scored: the mean over sequences, and what others show."""

import numpy as np
import pytest
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import LoaderConfig
from tomoglot.studies.lesion import LESIONS
from tomoglot.tasks.maps.blind_maps import MeanMaps
from tomoglot.tasks.maps.lesion_cases import MEAN_MAP, MIDDLE, Cases, Gathered, add_blind_maps, keep_maps
from tomoglot.tasks.task import MODEL

SHAPE, SEQUENCES = (12, 12, 12), ("flair", "t1w")
# Steps of 8 mm, as coarse as the mean maps are kept.
AFFINE = tuple(tuple(8.0 * (i == j) if i < 3 else float(j == 3) for j in range(4)) for i in range(4))
LESION, ELSEWHERE = (3, 3, 3), (9, 9, 9)


class Masked(WholeFields):
    """One voxel of an infarct in every study."""

    def read_mask(self, row, start, shape):
        mask = np.zeros(shape, dtype=np.uint8)
        mask[LESION] = LESIONS["infarct"]
        return mask


@pytest.fixture(scope="module")
def store():
    """Four studies of three subjects; the last is labelled as having no infarct, whatever its mask shows."""
    rows = [
        make_row(
            f"s{number}",
            subject=f"p{min(number, 2)}",
            sequences=SEQUENCES,
            shape=SHAPE,
            affine=AFFINE,
            has_mask=True,
            labels={"infarct": float(number < 3), "haemorrhage": 1.0},
        )
        for number in range(4)
    ]
    rng = np.random.default_rng(0)
    fields = {(row.key, name): rng.integers(120, 300, SHAPE).astype(np.int16) for row in rows for name in SEQUENCES}
    return Masked(rows, fields)


def cases_of(store, **given) -> Cases:
    loader = LoaderConfig(workers=0, crop_voxels=None, sequences=SEQUENCES)
    asked = ("haemorrhage", "infarct", "normal")
    return Cases(store, asked=asked, findings=None, loader=loader, split="test", **given)


def heat(**peaks: float) -> np.ndarray:
    found = np.zeros(SHAPE, dtype=np.float32)
    found[LESION], found[ELSEWHERE] = peaks.get("lesion", 0.0), peaks.get("elsewhere", 0.0)
    return found


def test_a_finding_that_a_study_does_not_have_has_no_region_whatever_its_mask_shows(store):
    cases = cases_of(store)
    assert [row.key for row in cases.rows] == ["s0", "s1", "s2", "s3"], "each has one of the findings"
    assert [(case.row.key, list(case.regions)) for case in cases] == [(f"s{n}", ["infarct"]) for n in range(3)]


def test_a_study_is_scored_by_the_mean_of_its_sequences_maps(store):
    case = next(iter(cases_of(store)))
    gathered, by_sequence, means = Gathered(("infarct",)), Gathered(("infarct",)), MeanMaps()
    # The mean is highest in the lesion, the highest of any sequence elsewhere.
    each = np.stack([heat(lesion=0.9, elsewhere=1.2), heat(lesion=1.0)])
    keep_maps(case, "infarct", each, gathered=gathered, by_sequence=by_sequence, means=means)
    assert gathered.found[MODEL]["s0"]["infarct"] == case.score(each.mean(axis=0), "infarct").found
    assert gathered.found[MODEL]["s0"]["infarct"]["pointing_game"] == 1
    assert [by_sequence.found[name]["s0"]["infarct"]["pointing_game"] for name in SEQUENCES] == [0, 1]


def test_the_mean_map_of_a_study_knows_nothing_of_its_own_subject(store):
    cases = cases_of(store)
    walked = list(cases)
    gathered, by_sequence, means = Gathered(("infarct",)), Gathered(("infarct",)), MeanMaps()
    here = np.zeros(SHAPE, dtype=np.float32)
    here[:6] = 1.0
    maps = [here, 1 - here, 1 - here]
    for case, its in zip(walked, maps, strict=True):
        keep_maps(case, "infarct", np.stack([its, its]), gathered=gathered, by_sequence=by_sequence, means=means)
    add_blind_maps(gathered, cases, means)
    for case in walked:
        others = MeanMaps()
        for other, its in zip(walked, maps, strict=True):
            if other.subject != case.subject:
                others.add("infarct", other.subject, its, body=other.body, affine=other.affine)
        slow = others.of_others("infarct", -1, body=case.body, affine=case.affine)
        assert gathered.found[MEAN_MAP][case.row.key]["infarct"] == case.score(slow, "infarct").found
    share = [gathered.found[MEAN_MAP][key]["infarct"]["share_inside"] for key in ("s0", "s1")]
    assert share[0] < 0.5 * share[1], "the first alone looks at the lesion: the others have it from the first"
    assert set(gathered.found[MIDDLE]) == {"s0", "s1", "s2"}


@pytest.mark.parametrize(("tolerance_mm", "hit"), [(0.0, 0), (15.9, 0), (16.1, 1)])
def test_a_maximum_beside_the_lesion_hits_within_the_tolerance(store, tolerance_mm, hit):
    case = next(iter(cases_of(store, tolerance_mm=tolerance_mm)))
    beside = np.zeros(SHAPE, dtype=np.float32)
    beside[LESION[0] + 2, LESION[1], LESION[2]] = 1.0
    assert case.score(beside, "infarct").found["pointing_game"] == hit
