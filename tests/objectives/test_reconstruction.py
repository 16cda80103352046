"""Reconstruction errors against their definitions in loops."""

import pytest
import torch
from torch import Tensor

from tomoglot.objectives.reconstruction import reconstruction_loss, voxel_weights


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    maker = torch.Generator().manual_seed(seed)
    true = torch.randn(2, 1, 3, 4, 2, generator=maker)
    true[:, :, 0] = 0
    return torch.randn(2, 1, 3, 4, 2, generator=maker), true, torch.rand(2, 1, 3, 4, 2, generator=maker) > 0.5


def in_words(predicted: Tensor, true: Tensor, hidden: Tensor | None, background: float, norm: str) -> float:
    roots, top, bottom = [], 0.0, 0.0
    for volume in range(len(true)):
        total = 0.0
        for i in range(3):
            for j in range(4):
                for k in range(2):
                    at = (volume, 0, i, j, k)
                    weight = 1.0 if hidden is None or bool(hidden[at]) else 0.0
                    weight *= background if float(true[at]) == 0 else 1.0
                    total += weight * float(predicted[at] - true[at]) ** 2
                    bottom += weight
        top += total
        roots.append(total**0.5)
    return sum(roots) / len(roots) if norm == "l2" else top / bottom


@pytest.mark.parametrize("norm", ["mse", "l2"])
@pytest.mark.parametrize("background", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("only_hidden", [True, False])
def test_the_loss_is_its_definition(norm: str, background: float, only_hidden: bool) -> None:
    predicted, true, hidden = example()
    mask = hidden if only_hidden else None
    weights = voxel_weights(true, mask, background_weight=background)
    found = reconstruction_loss(predicted, true, weights=weights, norm=norm)
    assert found.item() == pytest.approx(in_words(predicted, true, mask, background, norm), rel=1e-5)


@pytest.mark.parametrize("norm", ["mse", "l2"])
def test_visible_voxels_count_for_the_whole_crop_and_for_hidden_voxels_not_at_all(norm: str) -> None:
    """Trap 5."""
    predicted, true, hidden = example()
    changed = torch.where(hidden, true, true + 3.0)
    for mask, equal in ((hidden, True), (None, False)):
        first, second = (
            reconstruction_loss(predicted, one, weights=voxel_weights(one, mask), norm=norm) for one in (true, changed)
        )
        assert torch.equal(first, second) is equal


@pytest.mark.parametrize("norm", ["mse", "l2"])
def test_a_perfect_reconstruction_has_a_gradient_of_zero(norm: str) -> None:
    _, true, _ = example()
    predicted = true.clone().requires_grad_()
    reconstruction_loss(predicted, true, norm=norm).backward()
    assert (predicted.grad == 0).all()


def test_the_norm_of_the_paper_outweighs_the_mean_square_by_the_size_of_the_crop() -> None:
    predicted, true, _ = example()
    ratio = (
        reconstruction_loss(predicted[:1], true[:1], norm="l2") / reconstruction_loss(predicted[:1], true[:1]).sqrt()
    )
    assert ratio.item() == pytest.approx(24**0.5, rel=1e-5)


def test_nothing_to_count_is_refused() -> None:
    _, true, hidden = example()
    with pytest.raises(ValueError, match="no voxel counts"):
        voxel_weights(true, torch.zeros_like(hidden))
    with pytest.raises(ValueError, match="must not be negative"):
        voxel_weights(true, hidden, background_weight=-1.0)
