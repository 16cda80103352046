"""BraTS folders of 2021 and 2023: names, labels, time points, and masks whose meaning is not known."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tomoglot.studies import layouts
from tomoglot.studies.curate import examine
from tomoglot.studies.lesion import LESIONS, region_numbers
from tomoglot.studies.source import read_source

NAMES = {
    "brats_2021": ("_", {"t1w": "t1", "t1c": "t1ce", "t2w": "t2", "flair": "flair"}),
    "brats_2023": ("-", {"t1w": "t1n", "t1c": "t1c", "t2w": "t2w", "flair": "t2f"}),
}
# What the makers of each set call the numbers of its masks.
LABELS = {
    "BraTS2021_00000": {1: "necrosis", 2: "oedema", 4: "rim"},
    "BraTS-GLI-00000-000": {1: "necrosis", 2: "oedema", 3: "rim"},
    "BraTS-SSA-00002-000": {1: "non_enhancing", 2: "oedema", 3: "rim"},
    "BraTS-MEN-00004-000": {1: "non_enhancing", 2: "oedema", 3: "rim"},
    "BraTS-MET-00096-000": {1: "non_enhancing", 2: "oedema", 3: "rim"},
    "BraTS-PED-00003-000": {1: "non_enhancing", 2: "oedema", 3: "rim"},
}


def write_case(folder: Path, *, leave_out: tuple[str, ...] = (), numbers: tuple[int, ...] = (1, 2)) -> None:
    separator, names = NAMES["brats_2021" if "2021_" in folder.name else "brats_2023"]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 8, 8), dtype=np.uint8)
    for place, number in enumerate(numbers):
        mask[2 * place : 2 * place + 2] = number
    images = {suffix: rng.normal(100, 20, mask.shape).astype(np.float32) for suffix in names.values()} | {"seg": mask}
    for suffix, voxels in images.items():
        if suffix not in leave_out:
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{folder.name}{separator}{suffix}.nii.gz")


@pytest.mark.parametrize("case", list(LABELS))
def test_each_set_is_found_by_itself_and_its_labels_mean_what_its_makers_say(tmp_path, case):
    labels = LABELS[case]
    layout = "brats_2021" if "2021_" in case else "brats_2023"
    root = tmp_path / ("data" if layout == "brats_2021" else "ASNR-MICCAI-BraTS2023-TrainingData")
    write_case(root / case, numbers=tuple(labels))
    assert layouts.detect(root) == layout
    (study,) = read_source(root).studies
    assert {series.sequence for series in study.series} == {"t1w", "t1c", "t2w", "flair"}
    for series in study.series:
        separator, names = NAMES[layout]
        assert series.path.name == f"{case}{separator}{names[series.sequence]}.nii.gz"
    assert study.labels == {"mass": 1.0} and study.report is None
    found = examine(study)
    assert found.mask is not None and not found.rejected
    for place, tissue in enumerate(labels.values()):
        assert (found.mask.voxels[2 * place : 2 * place + 2] == LESIONS[tissue]).all()


def test_regions_mean_the_same_in_both_years(tmp_path):
    write_case(tmp_path / "a" / "BraTS2021_00000", numbers=(1, 2, 4))
    write_case(tmp_path / "b" / "BraTS-MEN-00004-000", numbers=(1, 2, 3))
    masks = []
    for folder in ("a", "b"):
        mask = examine(read_source(tmp_path / folder).studies[0]).mask
        assert mask is not None
        masks.append(mask.voxels)
    for region in ("enhancing", "core", "whole"):
        one, other = (np.isin(mask, region_numbers(region)) for mask in masks)
        assert one.any() and (one == other).all()


def test_a_label_of_2021_in_a_set_of_2023_costs_the_mask_and_is_said(tmp_path):
    write_case(tmp_path / "BraTS-GLI-00000-000", numbers=(1, 2, 4))
    found = examine(read_source(tmp_path).studies[0])
    assert found.mask is None and len(found.volumes) == 4
    assert [row.reason for row in found.rejected] == ["unknown-mask-label"]


def test_two_time_points_are_one_subject(tmp_path):
    for time_point in ("000", "001"):
        write_case(tmp_path / f"BraTS-GLI-00007-{time_point}")
    write_case(tmp_path / "BraTS-GLI-00008-000")
    studies = read_source(tmp_path).studies
    assert [(study.subject, study.study) for study in studies] == [
        ("BraTS-GLI-00007", "000"),
        ("BraTS-GLI-00007", "001"),
        ("BraTS-GLI-00008", "000"),
    ]


@pytest.mark.parametrize("case", ["BraTS2021_00000", "BraTS-GLI-00000-000"])
def test_a_missing_sequence_is_said_and_a_case_without_a_mask_is_usual(tmp_path, case):
    layout = "brats_2021" if "2021_" in case else "brats_2023"
    gone = NAMES[layout][1]["t1c"]
    write_case(tmp_path / "training" / case, leave_out=(gone, "seg"))
    sources = read_source(tmp_path)
    (study,) = sources.studies
    assert study.mask is None and {series.sequence for series in study.series} == {"t1w", "t2w", "flair"}
    assert [(row.reason, row.sequence) for row in sources.rejected] == [("missing-sequence", "t1c")]


def test_a_file_of_another_name_is_said_and_left_alone(tmp_path):
    write_case(tmp_path / "BraTS2021_00000")
    folder = tmp_path / "BraTS2021_00000"
    for name in ("BraTS2021_00000_adc.nii.gz", "BraTS2021_00001_t1.nii.gz", "seg.nii.gz"):
        (folder / name).write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    sources = read_source(tmp_path)
    assert sorted(row.file for row in sources.rejected) == [
        "BraTS2021_00000_adc.nii.gz",
        "BraTS2021_00001_t1.nii.gz",
        "seg.nii.gz",
    ]
    assert {row.reason for row in sources.rejected} == {"unknown-file"}
    assert len(sources.studies[0].series) == 4


@pytest.mark.parametrize(
    ("root", "case", "kept"),
    [
        ("BraTS2023-PED", "BraTS-PED-00003-000", True),
        ("children", "BraTS-PED-00003-000", False),
        ("BraTS-PEDs2024_Training", "BraTS-PED-00003-000", False),
        ("BraTS2024-GLI", "BraTS-GLI-00003-000", False),
        ("adults", "BraTS-GLI-00003-000", True),
    ],
)
def test_a_mask_whose_year_is_not_sure_is_refused_not_guessed(tmp_path, root, case, kept):
    write_case(tmp_path / root / case)
    sources = read_source(tmp_path / root)
    (study,) = sources.studies
    assert len(study.series) == 4
    assert (study.mask is not None) == kept
    assert [row.reason for row in sources.rejected] == ([] if kept else ["mask-labels-unknown"])


@pytest.mark.parametrize("layout", ["brats_2021", "brats_2023"])
def test_another_folder_is_refused(tmp_path, layout):
    (tmp_path / "BraTS20_Training_001").mkdir()
    with pytest.raises(ValueError, match=f"does not look like {layout}"):
        layouts.read(layout, tmp_path)
    with pytest.raises(ValueError, match="does not look like"):
        layouts.read(layout, tmp_path / "nowhere")
