"""Windows over a volume, and mirror images."""

from itertools import pairwise

import pytest
import torch

from tomoglot.tasks.heads.window import gaussian, slide, spread, with_flips


def test_a_network_that_looks_at_one_voxel_gives_the_same_in_windows():
    volumes = torch.randn(2, 3, 13, 9, 11)
    predict = lambda shown: torch.stack([shown[:, 0].sigmoid(), shown.prod(dim=1)], dim=1)  # noqa: E731
    whole = slide(predict, volumes, window=None)
    for window in [(6, 5, 4), (16, 4, 11), (13, 9, 11)]:
        torch.testing.assert_close(slide(predict, volumes, window=window), whole)


def test_windows_are_weighed_by_their_middle_as_in_the_slow_definition():
    volumes, window = torch.randn(1, 1, 7, 4, 4), (4, 4, 4)
    predict = lambda shown: shown.mean(dim=(2, 3, 4), keepdim=True).expand(-1, 1, 4, 4, 4)  # noqa: E731
    weights, total, seen = gaussian(window), torch.zeros(7, 4, 4), torch.zeros(7, 4, 4)
    for start in spread(7, 4, 0.5):
        total[start : start + 4] += weights * volumes[0, 0, start : start + 4].mean()
        seen[start : start + 4] += weights
    torch.testing.assert_close(slide(predict, volumes, window=window)[0, 0], total / seen)
    assert weights[0, 0, 0] < weights[1, 1, 1] == 1 and weights.min() > 0


@pytest.mark.parametrize(("size", "edge", "overlap"), [(40, 16, 0.5), (17, 16, 0.5), (16, 16, 0.9), (33, 8, 0.25)])
def test_windows_reach_both_ends_and_overlap_at_least_as_asked(size, edge, overlap):
    starts = spread(size, edge, overlap)
    assert starts[0] == 0 and starts[-1] == size - edge
    steps = [after - before for before, after in pairwise(starts)]
    assert all(0 < step <= edge * (1 - overlap) for step in steps)


def test_with_flips_the_answer_turns_with_the_volume():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    volumes = torch.randn(1, 1, 6, 5, 4)
    with torch.no_grad():
        assert not torch.allclose(network(volumes.flip(2)).flip(2), network(volumes), atol=1e-3)
        averaged = with_flips(network)
        for axes in [(2,), (3, 4), (2, 3, 4)]:
            torch.testing.assert_close(averaged(volumes.flip(axes)).flip(axes), averaged(volumes))


def test_an_overlap_of_one_is_refused():
    with pytest.raises(ValueError, match="overlap"):
        slide(lambda shown: shown, torch.zeros(1, 1, 4, 4, 4), window=(2, 2, 2), overlap=1.0)
