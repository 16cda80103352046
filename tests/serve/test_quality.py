"""The page about a cohort stands alone, names nobody, escapes what it is given, and shows the worst first."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tomoglot.serve.quality import curate_cohort, find_outliers, write_quality
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.study import Series, Study, Volume

NASTY = "<script>alert(1)</script>"


def volume(seed, spacing_mm=4.0, slices=20):
    rng = np.random.default_rng(seed)
    voxels = rng.normal(0, 4, (20, 20, slices)).astype(np.float32)
    voxels[4:16, 4:16, 4:-4] += (
        100 + 20 * rng.normal(0, 1, (3, 3, 3)).repeat(4, 0).repeat(4, 1).repeat(4, 2)[:, :, : slices - 8]
    )
    return Volume(voxels=voxels, affine=np.diag([4.0, 4.0, spacing_mm, 1.0]))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    studies = []
    for at in range(12):
        # The fourth has thick slices; the last is the first under another name, on the other side of the split.
        made = volume(at % 11, *((9.0, 12) if at == 3 else ()))
        path = folder / f"Name-of-{at}_T1w.nii.gz"
        write_nifti(path, made)
        split = "train" if at < 9 else "test"
        series = [Series(sequence="t1w", path=path)]
        if at in (5, 6):
            bad = folder / f"Name-of-{at}_FLAIR.nii.gz"
            bad.write_bytes(path.read_bytes()[:-30])
            series.append(Series(sequence="flair", path=bad))
        studies.append(Study(subject=f"Name-of-{at}", study="1", series=tuple(series), split=split, simulated=True))
    earlier = [RejectedRow(subject="Name-of-x", file="Name-of-x.nii", reason=NASTY, evidence=f"Name-of-x.nii: {NASTY}")]
    return curate_cohort(Sources(studies=studies, rejected=earlier), folder / "out")


@pytest.fixture(scope="module")
def page(cohort):
    return cohort[1].read_text(encoding="utf-8")


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in {"src", "href", "srcset", "action"}]


def test_the_page_needs_no_network_and_runs_no_script(page):
    links = Links()
    links.feed(page)
    assert links.sources and all(source.startswith("data:image/") for source in links.sources)
    assert not {"script", "link", "iframe", "object"} & set(links.tags)
    assert "url(" not in page and "@import" not in page


def test_what_comes_from_outside_is_escaped_and_no_subject_or_file_is_named(page):
    assert NASTY not in page and "&lt;script&gt;" in page
    assert "Name-of" not in page


def test_the_worst_comes_first_and_says_why(page):
    first = page.index("study 4, t1w")
    assert first < min(page.index(f"study {at}, t1w") for at in (1, 2, 3, 5))
    assert re.search(r"largest voxel edge 9 mm, usually 4 \(\+\d", page)


def test_every_rejection_stands_there_and_the_most_frequent_reason_first(page):
    assert page.index("<code>truncated</code>") < page.index("<code>&lt;script")
    assert page.count("<code>truncated</code>") == 1 + 2
    assert "the file: gzip stream stops" in page


def test_a_leak_is_shown_with_both_pictures(cohort, page):
    done, _ = cohort
    assert (done.num_duplicates, done.num_leaks) == (1, 1)
    assert "1 of 1 stand on two sides of the split" in page
    assert "study 1, t1w (train) and study 12, t1w (test)</strong>" in page and "the same voxels; a leak" in page


def test_slices_carry_orientation_letters(page):
    for letter in "RLAPSI":
        assert f'%">{letter}</span>' in page


def test_the_page_is_made_again_without_the_volumes_and_without_pictures(cohort, page, tmp_path):
    _, path = cohort
    assert write_quality(path.parent).read_text(encoding="utf-8") == page
    for name in ("accepted", "rejected", "series", "duplicates"):
        (tmp_path / f"{name}.parquet").write_bytes((path.parent / f"{name}.parquet").read_bytes())
    assert "no picture" in write_quality(tmp_path).read_text(encoding="utf-8")


def test_an_empty_cohort_has_a_page_and_no_curation_has_none(tmp_path):
    _, path = curate_cohort(Sources(studies=[], rejected=[]), tmp_path / "out")
    assert "Nothing was rejected" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no finished curation"):
        write_quality(tmp_path)


def measured(**columns):
    count = len(next(iter(columns.values())))
    usual = {"shape": np.full((count, 3), 50.0), "spacing_mm": np.full((count, 3), 2.0), "high": np.full(count, 9.0)}
    usual |= {name: np.full(count, 0.5) for name in ("low", "foreground", "contrast", "unlike")}
    return (
        usual | {"sequence": np.array(["t1w"] * count)} | {name: np.asarray(value) for name, value in columns.items()}
    )


def test_distances_are_robust_and_of_logarithms():
    foreground = [0.20, 0.21, 0.22, 0.23, 0.24, 0.25, 0.26, 0.27, 0.02]
    (one,) = find_outliers(measured(foreground=foreground))
    logs = np.log(foreground)
    median = np.median(logs)
    assert one.place == 8
    assert one.far == pytest.approx((median - logs[8]) / (1.4826 * np.median(np.abs(logs - median))))
    assert one.words == (f"share with signal 0.02, usually 0.23 (-{one.far:.1f})",)


def test_rounding_in_a_number_that_all_share_is_no_outlier_and_few_series_are_not_judged():
    assert not list(find_outliers(measured(foreground=[0.5] * 8 + [0.5001])))
    assert not list(find_outliers(measured(foreground=[0.5] * 6 + [0.01])))
    assert len(list(find_outliers(measured(foreground=[0.5] * 8 + [0.01])))) == 1
