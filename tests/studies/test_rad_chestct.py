"""Labels of another set as findings of ours, on a made-up table of the same shape."""

import pytest

from tomoglot.studies.findings import LISTS
from tomoglot.studies.rad_chestct import STANDS_FOR, map_labels

LABELS = {label for rests_on in STANDS_FOR.values() for label, _ in rests_on}
PLACES = ("lung", "right_upper", "thyroid", "aorta", "heart", "esophagus", "abdomen", "other_location")


def row_with(*names: str) -> dict[str, object]:
    blank = {f"{label}*{place}": "0" for label in LABELS for place in PLACES}
    return {"NoteAcc_DEID": "x1", **blank, **dict.fromkeys(names, "1.0")}


def test_all_of_the_list_is_mapped_but_what_has_no_counterpart() -> None:
    assert set(LISTS["chest"]) - set(STANDS_FOR) == {"mosaic_attenuation_pattern", "normal"}
    assert set(map_labels(row_with()).values()) == {0.0}


@pytest.mark.parametrize(
    ("column", "finding"),
    [
        ("nodule*right_upper", "lung_nodule"),
        ("pleural_effusion*other_location", "pleural_effusion"),
        ("calcification*aorta", "arterial_wall_calcification"),
        ("coronary_artery_disease*heart", "coronary_artery_wall_calcification"),
        ("hernia*esophagus", "hiatal_hernia"),
        ("bronchial_wall_thickening*lung", "peribronchial_thickening"),
        ("pacemaker_or_defib*heart", "medical_material"),
        ("nodule*thyroid", None),
        ("calcification*heart", None),
        ("hernia*abdomen", None),
    ],
)
def test_a_label_counts_only_at_its_places(column: str, finding: str | None) -> None:
    told = map_labels(row_with(column))
    assert {name for name, value in told.items() if value} == ({finding} if finding else set())


def test_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="RAD-ChestCT"):
        map_labels({"NoteAcc_DEID": "x1", "nodule*lung": "1"})


@pytest.mark.parametrize("cell", ["", "nan", None, "2", "-1", "yes"])
def test_a_cell_that_is_neither_present_nor_absent_is_no_absence(cell: object) -> None:
    with pytest.raises(ValueError, match="wanted 0 or 1"):
        map_labels(row_with() | {"nodule*lung": cell})
