"""Public layouts on made-up trees of their shape: found by themselves, read into studies, nothing odd kept quiet."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tomoglot.studies import layouts
from tomoglot.studies.curate import examine
from tomoglot.studies.source import read_source
from tomoglot.studies.split import split_subjects
from tomoglot.studies.stated import read_series
from tomoglot.studies.study import Rejected

REPOSITORY = Path(__file__).resolve().parents[2]


def write(path: Path, voxels=None, spacing=(1.0, 1.0, 1.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if voxels is None:
        voxels = np.random.default_rng(0).integers(0, 500, (6, 5, 4))
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([*spacing, 1.0])), path)
    return path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def text(path: Path, words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words)


def named(sources):
    return {(study.subject, study.study): study for study in sources.studies}


def sequences(study):
    return {series.sequence: series.path.name for series in study.series}


def reasons(sources):
    return sorted(row.reason for row in sources.rejected)


def test_each_layout_has_its_line_in_the_documentation():
    page = (REPOSITORY / "docs" / "reference" / "layouts.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert listed == list(layouts.names())


def chest(*, slope=1.0, intercept=0.0):
    """Air, lung and soft tissue in Hounsfield units, stored as a scanner with this slope and intercept would."""
    hounsfield = np.random.default_rng(0).normal(0, 10, (10, 10, 10))
    hounsfield[:3] = -1000
    hounsfield[3:6] = np.random.default_rng(1).normal(-850, 30, (3, 10, 10))
    return np.round((hounsfield - intercept) / slope)


METADATA = (
    "VolumeName,RescaleSlope,RescaleIntercept,XYSpacing,ZSpacing,ImagePositionPatient,ImageOrientationPatient\n"
    + "".join(
        f'train_{name}.nii.gz,1,-1024,"[0.5, 0.7]",2.0,"[-10.0, -20.0, 30.0]","[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]"\n'
        for name in ("1_a_1", "1_a_2", "2_a_1")
    )
)


@pytest.fixture
def ct_rate(tmp_path):
    base = tmp_path / "dataset"
    raw = chest(intercept=-1024)
    for name in ("1_a_1", "1_a_2", "3_a_1"):
        write(base / f"train/train_1/train_1_a/train_{name}.nii.gz", raw)
    write(base / "train_fixed/train_1/train_1_a/train_1_a_2.nii.gz", chest(), (0.5, 0.7, 2.0))
    write(base / "valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz", chest())
    touch(base / "train_fixed/train_9/train_9_a/train_9_a_1.nii.gz")
    touch(base / "train_fixed/notes.nii.gz")
    text(base / "metadata/train_metadata.csv", METADATA)
    text(base / "metadata/no_chest_train.txt", "train_9_a_1.nii.gz\n")
    reports = "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n"
    rows = "".join(f"train_1_a_{n}.nii.gz,Not given.,CT.,A nodule.,Nodule.\n" for n in (1, 2))
    text(base / "radiology_text_reports/train_reports.csv", reports + rows)
    none = "valid_1_a_1.nii.gz,,,Not given.,Not given.\n"
    text(base / "radiology_text_reports/validation_reports.csv", reports + none)
    labels = "VolumeName,Lung nodule,Hiatal hernia\ntrain_1_a_1.nii.gz,1,0\n"
    text(base / "multi_abnormality_labels/train_predicted_labels.csv", labels)
    return tmp_path


def test_ct_rate_joins_reports_and_labels_and_leaves_out_what_is_not_a_chest(ct_rate):
    assert layouts.detect(ct_rate) == "ct_rate" == layouts.detect(ct_rate / "dataset")
    sources = read_source(ct_rate)
    studies = named(sources)
    assert set(studies) == {("train_1", "a_1"), ("train_1", "a_2"), ("valid_1", "a_1")}
    first, second = studies["train_1", "a_1"], studies["train_1", "a_2"]
    # Two reconstructions of one scan: one subject, one report.
    assert first.report == second.report and first.report is not None
    assert (first.report.findings, first.report.impression) == ("A nodule.", "Nodule.")
    assert first.labels == {"lung_nodule": 1.0, "hiatal_hernia": 0.0} and second.labels == {}
    assert first.labels_mined == ("hiatal_hernia", "lung_nodule"), "a classifier read them from the reports"
    assert [studies[key].split for key in sorted(studies)] == ["train", "train", "test"], "its valid is what is scored"
    assert studies["valid_1", "a_1"].report is None
    # The newer release is read where both are there.
    assert second.series[0].path.parts[-4] == "train_fixed"
    assert reasons(sources) == ["another-ct", "no-metadata", "not-chest", "unknown-file"]


def test_ct_rate_is_in_hounsfield_units_and_in_place_whatever_the_release(ct_rate):
    base, studies = ct_rate / "dataset", named(read_source(ct_rate))
    for study in studies.values():
        volume = read_series(study.series[0])
        np.testing.assert_array_equal(volume.voxels, chest())
    first = read_series(studies["train_1", "a_1"].series[0])
    assert first.affine.tolist() == [[-0.5, 0, 0, 10], [0, -0.7, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]]
    # A file of one release that was moved into the other's folder is neither scaled twice nor taken as it is.
    old, new = studies["train_1", "a_1"].series[0], studies["valid_1", "a_1"].series[0]
    write(old.path, chest(), (0.5, 0.7, 2.0))
    np.testing.assert_array_equal(read_series(old).voxels, chest())
    write(new.path, chest(intercept=-1024))
    with pytest.raises(Rejected, match=r"not-hounsfield.*near air 0% and near water"):
        read_series(new)
    # Padding that looks like air makes both readings plausible: neither is taken.
    padded = chest(intercept=-1024)
    padded[:, :3] = -1024
    for voxels, spacing, reason in (
        (padded, (0.5, 0.7, 2.0), "not-hounsfield.*in exactly one of the two"),
        (chest(intercept=-1024), (0.5, 0.9, 2.0), "spacing-mismatch.*0.5 x 0.9 x 2 mm by its header and 0.5 x 0.7 x 2"),
        (np.random.default_rng(0).integers(0, 200, (10, 10, 10)), (0.5, 0.7, 2.0), "not-hounsfield"),
    ):
        write(old.path, voxels, spacing)
        with pytest.raises(Rejected, match=reason):
            read_series(old)
    text(base / "metadata/train_metadata.csv", METADATA.replace('"[0.5, 0.7]"', ""))
    write(old.path, chest(intercept=-1024))
    with pytest.raises(Rejected, match=r"spacing-mismatch.*no three positive numbers"):
        read_series(named(read_source(ct_rate))["train_1", "a_1"].series[0])


def test_ct_rate_takes_a_side_to_choose_on_from_the_subjects_of_its_train(tmp_path):
    def sides(numbers):
        for number in numbers:
            for scan in ("a_1", "b_1"):
                touch(tmp_path / f"train_fixed/train_{number}/train_{number}_{scan[0]}/train_{number}_{scan}.nii.gz")
        touch(tmp_path / "valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz")
        text(tmp_path / "radiology_text_reports/train_reports.csv", "VolumeName,Findings_EN\n")
        studies = read_source(tmp_path, layout="ct_rate").studies
        found = {}
        for study in studies:
            assert found.setdefault(study.subject, study.split) == study.split, "all scans of a subject on one side"
        return found

    few, more = sides(range(1, 100)), sides(range(1, 400))
    assert few.items() <= more.items(), "a download that goes on moves nobody"
    assert more.pop("valid_1") == "test" and set(more.values()) == {"train", "val"}
    share = sum(side == "val" for side in more.values()) / len(more)
    assert 0.02 < share < 0.08
    wanted = split_subjects(more, fractions={"train": 0.95, "val": 0.05}, seed=0)
    assert more == wanted, "what a store would draw itself"


def test_ct_rate_without_its_list_of_exclusions_says_so(ct_rate):
    (ct_rate / "dataset/metadata/no_chest_train.txt").unlink()
    assert "exclusions-absent" in reasons(read_source(ct_rate))


def test_mr_rate_keeps_the_first_series_of_a_kind_and_lists_the_rest(tmp_path):
    for name in ("t1w-raw-axi", "t1w-raw-axi-2", "t2w-raw-sag", "t2w-raw-cor", "swi-raw-obl", "pd-raw-axi"):
        touch(tmp_path / f"mri/batch00/S1/img/S1_{name}.nii.gz")
    touch(tmp_path / "mri/batch00/S1/seg/S1_t1w-raw-axi_brain-mask.nii.gz")
    touch(tmp_path / "mri/batch00/S2.zip")
    touch(tmp_path / "mri/batch01/S3/img/S3_flair-raw-cor.nii.gz")
    touch(tmp_path / "mri/batch01/S4/img/S4_flair-raw-cor.nii.gz")
    splits = "batch_id,patient_uid,study_uid,split\nbatch00,P1,S1,train\nbatch00,P1,S2,train\nbatch01,P2,S3,val\n"
    text(tmp_path / "splits.csv", splits)
    reports = "study_uid,report,clinical_information,technique,findings,impression\nS1,All of it.,,,No mass.,Normal.\n"
    text(tmp_path / "reports/batch00_reports.csv", reports)
    order = "patient_uid,study_uid,series_id,SeriesNumber\nP1,S1,t1w-raw-axi,9\nP1,S1,t1w-raw-axi-2,3\n"
    text(tmp_path / "metadata/batch00_metadata.csv", order)
    assert layouts.detect(tmp_path) == "mr_rate"
    sources = read_source(tmp_path)
    studies = named(sources)
    assert set(studies) == {("P1", "S1"), ("P2", "S3")}
    first = studies["P1", "S1"]
    # The series number decides, and without one the plane.
    assert sequences(first) == {
        "t1w": "S1_t1w-raw-axi-2.nii.gz", "t2w": "S1_t2w-raw-sag.nii.gz", "swi": "S1_swi-raw-obl.nii.gz"
    }  # fmt: skip
    assert first.report is not None
    assert (first.report.text, first.report.findings, first.report.impression) == ("All of it.", "No mass.", "Normal.")
    assert (first.split, studies["P2", "S3"].split) == ("train", "val")
    assert reasons(sources) == ["another-t1w", "another-t2w", "no-subject", "still-packed", "unknown-file"]


def annotation(series, phase, category):
    lesion = {"0": {"category": category, "bbox": {"3D_box": {}}}}
    spacing = {"pixel_spacing": [0.8, 0.5], "slice_thickness": 3.0}
    return {"studyUID": "1.2", "seriesUID": series, "phase": phase, "annotation": {"lesion": lesion}, **spacing}


def test_lld_mmri_has_eight_phases_seven_classes_and_the_spacing_of_its_annotation(tmp_path):
    phases = ("T2WI", "DWI", "In Phase", "Out Phase", "C-pre", "C+A", "C+V", "C+Delay")
    listed = {
        "MR1": [annotation(f"s{place}", phase, 6) for place, phase in enumerate(phases)]
        + [annotation("s9", "C+A", 6), annotation("s10", "C+X", 6)],
        "MR2": [annotation("s0", "DWI", "FOCAL_NODULAR_HYPERPLASIA")],
        "MR3": [annotation("s0", "DWI", -1)],
    }
    text(tmp_path / "labels/Annotation.json", json.dumps({"Annotation_info": listed}))
    write(tmp_path / "images/MR1/1.2/s0.nii.gz")
    write(tmp_path / "images/MR2/1.2/s0.nii.gz", spacing=(0.5, 0.8, 3.0))
    write(tmp_path / "images/MR3/1.2/s0.nii.gz", spacing=(0.5, 0.8, 4.0))
    assert layouts.detect(tmp_path) == "lld_mmri"
    sources = read_source(tmp_path)
    one, two, three = (named(sources)[name, "1.2"] for name in ("MR1", "MR2", "MR3"))
    names = ("t2w", "dwi", "in_phase", "out_of_phase", "pre_contrast", "arterial", "portal_venous", "delayed")
    assert sequences(one) == {name: f"s{place}.nii.gz" for place, name in enumerate(names)}
    assert one.labels["hcc"] == 1 and sum(one.labels.values()) == 1 and len(one.labels) == 7
    assert two.labels["fnh"] == 1 and sum(two.labels.values()) == 1 and three.labels == {}
    assert reasons(sources) == ["another-arterial", "unknown-phase"]
    # What curation reads is what the annotation says.
    found = examine(replace(one, series=one.series[:1]))
    assert found.volumes["t2w"].grid.spacing_mm == (0.5, 0.8, 3.0) and found.study.series == one.series[:1]
    # The header of the first says nothing, that of the second agrees, that of the third contradicts.
    assert read_series(one.series[0]).grid.spacing_mm == (0.5, 0.8, 3.0)
    assert read_series(two.series[0]).grid.spacing_mm == pytest.approx((0.5, 0.8, 3.0))
    with pytest.raises(Rejected, match="spacing-mismatch"):
        read_series(three.series[0])
    text(tmp_path / "labels/Annotation.json", "{}")
    with pytest.raises(ValueError, match="no annotation of LLD-MMRI"):
        read_source(tmp_path)


@pytest.mark.parametrize("folders", [True, False])
def test_ixi_is_one_study_a_subject_and_its_dti_is_not_read(tmp_path, folders):
    for name in ("IXI002-Guys-0828-T1", "IXI002-Guys-0828-MRA", "IXI013-HH-1212-PD", "IXI013-HH-1212-T2"):
        touch(tmp_path / (f"IXI-{name[-2:]}" if folders else ".") / f"{name}.nii.gz")
    for direction in range(3):
        touch(tmp_path / ("IXI-DTI" if folders else ".") / f"IXI002-Guys-0828-DTI-{direction:02d}.nii.gz")
    assert layouts.detect(tmp_path) == "ixi"
    sources = read_source(tmp_path)
    studies = named(sources)
    assert set(sequences(studies["IXI002", "Guys-0828"])) == {"t1w", "mra"}
    assert set(sequences(studies["IXI013", "HH-1212"])) == {"pd", "t2w"}
    assert studies["IXI013", "HH-1212"].labels == {"normal": 1.0}
    assert [(row.reason, row.evidence[:2]) for row in sources.rejected] == [("not-read", "3 ")]


def test_ucsf_pdgm_puts_follow_ups_under_their_subject(tmp_path):
    names = ("T1", "T1c", "T1c_bias", "FLAIR_bias", "ADC", "DTI_eddy_FA", "brain_segmentation", "tumor_segmentation")
    for case in ("0004", "0409", "0409_FU001d", "0181"):
        for name in names:
            touch(tmp_path / f"UCSF-PDGM-v3/UCSF-PDGM-{case}_nifti/UCSF-PDGM-{case}_{name}.nii.gz")
    touch(tmp_path / "UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T9.nii.gz")
    assert layouts.detect(tmp_path) == "ucsf_pdgm"
    sources = read_source(tmp_path)
    studies = named(sources)
    assert sorted(studies) == [
        ("UCSF-PDGM-0004", "pre-treatment"), ("UCSF-PDGM-0409", "FU001d"), ("UCSF-PDGM-0409", "follow-up-0181"),
        ("UCSF-PDGM-0409", "pre-treatment"),
    ]  # fmt: skip
    one = studies["UCSF-PDGM-0004", "pre-treatment"]
    assert set(sequences(one)) == {"t1w", "t1c", "flair", "adc"}
    assert sequences(one)["t1c"] == "UCSF-PDGM-0004_T1c.nii.gz"
    assert one.mask is not None and one.mask_labels == {1: "necrosis", 2: "oedema", 4: "rim"}
    assert reasons(sources) == ["unknown-file"]


BRAIN = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


def test_a_decathlon_task_is_read_channel_by_channel(tmp_path):
    four = np.stack([np.full((6, 5, 4), value) for value in (1, 2, 3, 4)], axis=-1)
    four[0] += 10
    write(tmp_path / "imagesTr/BRATS_001.nii.gz", four)
    listed = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": BRAIN,
        "training": [
            {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"},
            {"image": "../elsewhere.nii.gz", "label": "./labelsTr/BRATS_002.nii.gz"},
        ],
        "test": ["./imagesTs/BRATS_485.nii.gz"],
    }
    text(tmp_path / "dataset.json", json.dumps(listed))
    assert layouts.detect(tmp_path) == "msd"
    sources = read_source(tmp_path)
    studies = named(sources)
    one = studies["BRATS_001", "scan"]
    assert [series.sequence for series in one.series] == ["flair", "t1w", "t1c", "t2w"]
    for value, series in enumerate(one.series, start=1):
        assert set(np.unique(read_series(series).voxels)) == {value, value + 10}
    assert one.mask is not None and one.mask_labels == {1: "oedema", 2: "non_enhancing", 3: "rim"}
    assert studies["BRATS_485", "scan"].mask is None and reasons(sources) == ["outside"]
    # Organs and lesions of other kinds have no number of ours: their masks are not taken for tumour tissue.
    for labels in ({"0": "background", "1": "liver", "2": "cancer"}, {"0": "background", "1": "liver", "2": "edema"}):
        text(tmp_path / "dataset.json", json.dumps(listed | {"labels": labels}))
        sources = read_source(tmp_path)
        assert all(study.mask is None for study in sources.studies)
        assert [row.reason for row in sources.rejected if "liver" in row.evidence] == ["mask-labels-unknown"]
    for words in ("{", "[]", '{"labels": {}}'):
        text(tmp_path / "dataset.json", words)
        with pytest.raises(ValueError, match=r"dataset\.json"):
            read_source(tmp_path)


def test_a_channel_that_is_not_there_is_refused(tmp_path):
    from tomoglot.studies.nifti import read_nifti

    for shape, channel in (((6, 5, 4, 2), 2), ((6, 5, 4), 1)):
        path = write(tmp_path / "x.nii.gz", np.arange(np.prod(shape)).reshape(shape))
        with pytest.raises(Rejected, match="no-such-channel"):
            read_nifti(path, channel=channel)
    with pytest.raises(Rejected, match="wrong-dimension"):
        read_nifti(write(tmp_path / "x.nii.gz", np.arange(240).reshape(6, 5, 4, 2)))


def test_nnunet_cases_are_read_by_channel_and_test_cases_stay_apart(tmp_path):
    for case, part in (("a_1", "Tr"), ("b", "Tr"), ("c", "Ts")):
        for channel in (0, 1):
            touch(tmp_path / f"images{part}/{case}_{channel:04d}.nii.gz")
        touch(tmp_path / f"labels{part}/{case}.nii.gz")
    touch(tmp_path / "imagesTr/b_0002.nii.gz")
    listed = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "MS lesion": 1}}
    text(tmp_path / "dataset.json", json.dumps(listed))
    assert layouts.detect(tmp_path) == "nnunet"
    sources = read_source(tmp_path)
    studies = named(sources)
    assert {case: study.split for (case, _), study in studies.items()} == {"a_1": "train", "b": "train", "c": "test"}
    assert sequences(studies["a_1", "scan"]) == {"t1w": "a_1_0000.nii.gz", "flair": "a_1_0001.nii.gz"}
    assert studies["c", "scan"].mask_labels == {1: "plaque"} and reasons(sources) == ["unknown-file"]
    # Regions, two channels of one name, and no test labels: no mask, names by number, no split.
    listed = {"channel_names": {"0": "CT", "1": "CT"}, "labels": {"background": 0, "MS lesion": [1, 2]}}
    text(tmp_path / "dataset.json", json.dumps(listed))
    (tmp_path / "labelsTs/c.nii.gz").unlink()
    sources = read_source(tmp_path)
    assert all(study.mask is None and study.split is None for study in sources.studies)
    assert set(sequences(sources.studies[0])) == {"ct_0", "ct_1"} and "mask-labels-unknown" in reasons(sources)


def test_bids_derivatives_prefer_the_subjects_own_space_and_take_no_brain_for_a_lesion(tmp_path):
    anat = tmp_path / "sub-01/ses-1/anat"
    for name in (
        "desc-preproc_T1w", "space-MNI152NLin2009cAsym_desc-preproc_T1w", "ce-gd_desc-preproc_T1w", "T2w",
        "desc-brain_mask", "dseg", "label-lesion_mask", "space-MNI152NLin2009cAsym_label-lesion_mask",
        "desc-smooth_FLAIR", "label-GM_probseg", "desc-preproc_T2w", "desc-preproc_space-MNI_PDw", "space-orig_PDw",
    ):  # fmt: skip
        touch(anat / f"sub-01_ses-1_{name}.nii.gz")
    text(tmp_path / "dataset_description.json", '{"DatasetType": "derivative"}')
    assert layouts.detect(tmp_path) == "bids_derivatives"
    sources = read_source(tmp_path)
    (study,) = sources.studies
    assert (study.subject, study.study) == ("sub-01", "ses-1")
    assert sequences(study) == {
        "t1w": "sub-01_ses-1_desc-preproc_T1w.nii.gz",
        "t1c": "sub-01_ses-1_ce-gd_desc-preproc_T1w.nii.gz",
        "t2w": "sub-01_ses-1_desc-preproc_T2w.nii.gz",
        "pd": "sub-01_ses-1_space-orig_PDw.nii.gz",
    }
    assert study.mask is not None and study.mask.name == "sub-01_ses-1_label-lesion_mask.nii.gz"
    assert reasons(sources) == ["another-pd", "another-t1w", "another-t2w"]
    # Raw BIDS stays with the reader of raw BIDS.
    text(tmp_path / "dataset_description.json", '{"DatasetType": "raw"}')
    assert layouts.detect(tmp_path) is None
