"""Maps of an answer are their definitions, lie where the encoder's steps lie, and are refused where there are none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tomoglot.batches.batch import Batch
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.tasks.maps.attribution import Asked, How, _spread_all, explain

SHAPE = (16, 12, 20)


def study(seed=0, acquired=(True, False, True), count=1):
    generator = torch.Generator().manual_seed(seed)
    there = torch.tensor([acquired] * count)
    volumes = torch.rand(count, 3, *SHAPE, generator=generator) * there[:, :, None, None, None]
    return Batch(
        volumes=volumes,
        acquired=there,
        sequences=("dwi", "flair", "t1w"),
        affine=torch.eye(4).repeat(count, 1, 1),
        studies=tuple(f"study-{row}" for row in range(count)),
        subjects=torch.arange(count),
        reports=(None,) * count,
        labels=torch.ones(count, 2),
        labelled=torch.ones(count, 2, dtype=torch.bool),
        findings=("infarct", "mass"),
    )


class Net(nn.Module):
    """One encoder over every acquired sequence; the answer is linear in the mean of the pooled vectors."""

    def __init__(self, encoder="plain_conv:tiny", **changes):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = VisionEncoder.Config.named(encoder).but(**changes).build()
        self.head = nn.Linear(self.encoder.embedding, 2)
        self.eval()

    def forward(self, batch):
        pooled = self.encoder(batch.volumes[batch.acquired][:, None]).pooled
        rows = batch.acquired.nonzero()[:, 0]
        sums = torch.zeros(len(batch), pooled.shape[1]).index_add(0, rows, pooled)
        return self.head(sums / batch.acquired.sum(dim=1)[:, None])


def asked(net, **changes):
    return Asked(net=net, answer=net, findings=("infarct", "mass"), **changes)


def plain(**changes):
    return Net(widths=(8, 16), blocks=(0, 1), pooling="every_stage", **changes)


def maps_in_words(net, batch, finding, stage, *, each_place):
    """The map of every sequence, one place after the other, on the grid of the stage."""
    volumes = batch.volumes[batch.acquired][:, None].clone().requires_grad_(True)
    features = net.encoder(volumes)
    answer = net.head(features.pooled.mean(dim=0))[finding]
    values = features.pyramid[stage]
    (gradient,) = torch.autograd.grad(answer, values)
    found = np.zeros((len(values), *values.shape[2:]))
    for row in range(len(values)):
        for place in np.ndindex(*values.shape[2:]):
            at = (row, slice(None), *place)
            weight = gradient[at] if each_place else gradient[row].mean(dim=(1, 2, 3))
            found[(row, *place)] = max(float((weight * values[at]).sum().detach()), 0.0)
    return found / found.max()


def spread_in_words(map_, stride, centre):
    """Voxel by voxel: linear between the two steps on either side, along one axis after the other."""
    for axis, size in enumerate(SHAPE):
        places = centre + stride * np.arange(map_.shape[axis])
        map_ = np.apply_along_axis(lambda line, at=places, to=size: np.interp(np.arange(to), at, line), axis, map_)
    return map_


@pytest.mark.parametrize("method", ["gradient", "each_place"])
@pytest.mark.parametrize("stage", [0, 1])
def test_gradient_maps_are_their_definition(method, stage):
    net, batch = plain(), study()
    found = explain(asked(net), batch, ("mass",), How(method=method, stages=(stage,)))
    assert found.shape == (1, 2, *SHAPE)
    slow = maps_in_words(net, batch, 1, stage, each_place=method == "each_place")
    for one, map_ in zip(found[0], slow, strict=True):
        np.testing.assert_allclose(one, spread_in_words(map_, net.encoder.strides[stage], 0.0), atol=1e-4)


def test_several_stages_are_averaged_and_none_means_all():
    net, batch = plain(), study()
    each = [explain(asked(net), batch, ("infarct", "mass"), How(stages=(stage,))) for stage in (0, 1)]
    both = explain(asked(net), batch, ("infarct", "mass"), How())
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-6)


def test_frozen_weights_can_be_explained_and_nothing_is_left_behind():
    net, batch = plain().requires_grad_(False), study()
    found = explain(asked(net), batch, ("mass",), How())
    assert found.max() > 0
    assert not batch.volumes.requires_grad
    assert not net.encoder._forward_hooks
    assert all(value.grad is None for value in net.parameters())


@pytest.mark.parametrize("encoder", ["plain_conv:tiny", "vit:tiny", "uniformer:tiny", "res_enc:tiny"])
def test_every_backbone_has_a_coarsest_map_to_explain_by(encoder):
    batch = replace(study(), volumes=torch.rand(1, 3, 32, 32, 32))
    net = Net(encoder)
    net.head.weight.data[1] = -net.head.weight.data[0]  # what speaks against one finding speaks for the other
    found = explain(asked(net), batch, ("infarct", "mass"), How(stages=(-1,)))
    assert found.shape == (2, 2, 32, 32, 32) and np.isfinite(found).all() and found.max() > 0


def test_a_map_of_an_image_spreads_over_its_one_plane():
    batch = replace(study(), volumes=torch.rand(1, 3, 32, 24, 1))
    found = explain(asked(Net("vit:tiny", patch=(8, 8, 1))), batch, ("infarct",), How())
    assert found.shape == (1, 2, 32, 24, 1)


def test_steps_with_unequal_edges_spread_along_their_own():
    """Patches of (8, 8, 1): along k each plane is a step of its own."""
    map_ = np.random.default_rng(0).random((2, 2, 20)).astype(np.float32)
    found = _spread_all(map_, (16, 16, 20), stride=8, centre=3.5)
    np.testing.assert_allclose(found[3], found[2], atol=0.2)
    np.testing.assert_allclose(found[0, 0], map_[0, 0], atol=1e-6)


@pytest.mark.parametrize("encoder", ["plain_conv:tiny", "res_enc:tiny"])
def test_a_step_of_a_convolution_is_centred_where_the_encoder_says(encoder):
    """What a step sees, with norms taken out: the middle of it lies at `centre` plus strides."""
    net = Net(encoder).encoder
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.GroupNorm):
            parent = net.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    for value in net.parameters():
        value.data = value.data.abs()
    for stage, stride in enumerate(net.strides):
        volume = torch.ones(1, 1, 96, 16, 16, requires_grad=True)
        map_ = net(volume).pyramid[stage]
        step = map_.shape[2] // 2
        (gradient,) = torch.autograd.grad(map_[0, :, step].sum(), volume)
        along = gradient[0, 0].sum(dim=(1, 2))
        middle = float((along * torch.arange(96)).sum() / along.sum())
        assert middle == pytest.approx(net.centre(stage) + stride * step, abs=0.3 * stride)
        if encoder.startswith("plain"):
            seen = along.nonzero().flatten()
            assert float(seen.min() + seen.max()) / 2 == net.centre(stage) + stride * step


def test_patches_are_centred_on_their_middle():
    assert Net("vit:tiny").encoder.centre(0) == 3.5


def test_occlusion_is_what_the_answer_loses():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(4)))

        def forward(self, batch):
            return torch.einsum("bcijk,fcijk->bf", batch.volumes, self.weight)

    net, batch = Sums(), study()
    found = explain(asked(net), batch, ("mass", "infarct"), How(method="occlusion", box=4))
    lost = (batch.volumes[0] * net.weight.detach())[:, [0, 2]].numpy()
    boxes = lost.reshape(2, 2, 4, 4, 3, 4, 5, 4).sum(axis=(3, 5, 7)).clip(min=0)
    for finding, row in ((1, 0), (0, 1)):
        for sequence in range(2):
            slow = spread_in_words(boxes[finding, sequence], 4, 1.5)
            np.testing.assert_allclose(found[row, sequence], slow, atol=1e-4)


def test_occlusion_passes_over_boxes_where_nothing_was_imaged():
    asks = []

    class Counting(nn.Module):
        def forward(self, batch):
            asks.append(len(batch))
            return batch.volumes.sum(dim=(1, 2, 3, 4))[:, None].repeat(1, 2)

    batch = study()
    batch.volumes[:, :, 4:] = 0
    explain(asked(Counting()), batch, ("mass",), How(method="occlusion", box=4))
    assert sum(asks) == 1 + 2 * 3 * 5


def test_attention_is_spread_over_voxels_for_every_finding():
    net, batch = plain(), study()
    given = torch.rand(1, 3, 4, 3, 5, generator=torch.Generator().manual_seed(5))
    found = explain(asked(net, attention=lambda _: given), batch, ("infarct", "mass"), How(method="attention"))
    for finding in range(2):
        for row, column in enumerate((0, 2)):
            slow = spread_in_words(given[0, column].numpy(), 4, 0.0)
            np.testing.assert_allclose(found[finding, row], slow, atol=1e-5)


def test_what_has_no_maps_is_refused():
    net, batch = plain(), study()
    with pytest.raises(ValueError, match="one study at a time"):
        explain(asked(net), study(count=2), ("mass",), How())
    with pytest.raises(ValueError, match="one study at a time"):
        explain(asked(net), study(acquired=(False,) * 3), ("mass",), How())
    with pytest.raises(ValueError, match="has 2 maps"):
        explain(asked(net), batch, ("mass",), How(stages=(2,)))
    larger = replace(batch, volumes=torch.rand(1, 3, 32, 32, 32))
    with pytest.raises(ValueError, match="reaches stages"):
        explain(asked(Net("uniformer:tiny")), larger, ("mass",), How(stages=(0,)))
    with pytest.raises(ValueError, match="choose another method"):
        explain(asked(net), batch, ("mass",), How(method="attention"))

    class Twice(Net):
        def forward(self, batch):
            super().forward(batch)
            return super().forward(batch)

    with pytest.raises(ValueError, match="which map is whose"):
        explain(asked(Twice()), batch, ("mass",), How())
    deaf = Asked(net=nn.Linear(1, 2), answer=lambda one: one.volumes.mean().repeat(1, 2), findings=("infarct", "mass"))
    with pytest.raises(ValueError, match="without a vision encoder"):
        explain(deaf, batch, ("mass",), How())
