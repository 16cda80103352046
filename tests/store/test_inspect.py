"""What is counted and drawn is what is there."""

import numpy as np
from matplotlib import image

from tomoglot.store.inspect import draw, shown, summarise
from tomoglot.store.reader import Store


def test_the_summary_counts_what_the_cohort_holds(store_path):
    found = summarise(Store.open(store_path))
    assert (found.subjects, found.studies, found.simulated, found.masks) == (5, 5, 5, 3)
    assert (found.reports, found.distinct_reports) == (3, 3)
    assert found.sequences == {"flair": 5, "t1w": 5, "t2w": 3}
    assert found.missingness == {(True, True, True): 3, (True, True, False): 2}
    assert found.spacings_mm == {(1.0, 1.0, 1.25): 5}
    mass = found.prevalence["mass"].values()
    assert (sum(one.known for one in mass), sum(one.present for one in mass)) == (4, 1)
    assert sum(studies for _, studies in found.splits.values()) == 5
    assert 0 < found.bytes_on_disk < found.bytes_of_voxels


def test_the_drawing_is_a_picture_with_something_on_it(store_path, tmp_path):
    draw(Store.open(store_path), tmp_path / "store.png")
    picture = image.imread(tmp_path / "store.png")
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["store.png"]


def test_the_front_is_up_and_the_subjects_left_is_on_the_right():
    plane = np.zeros((5, 7))
    plane[0, 6] = 1.0
    assert np.argwhere(shown(plane)).tolist() == [[0, 4]]
