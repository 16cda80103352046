"""The network: whose weights it starts from, what stands in for an absent sequence, and where crops are taken."""

import dataclasses

import numpy as np
import pytest
import torch

from tomoglot.batches.batch import Batch
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.heads.segmenter import LesionCrops, Segmenter, build_segmenter, cut_batch, draw_kept, templates_of

SEQUENCES = ("t1w", "flair", "dwi")
REGIONS = {"whole": (1, 2), "core": (1,)}


class OneEncoder(Recipe):
    """A recipe with one encoder of single sequences, and templates if asked."""

    def __init__(self, *, bank=("shared",)):
        super().__init__()
        self.sequences = SEQUENCES
        vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0))
        self.encoders = torch.nn.ModuleDict({name: vision.build() for name in bank})

    def losses(self, batch, *, progress):
        raise NotImplementedError

    def encode(self, batch):
        raise NotImplementedError

    def backbone(self, sequence=None):
        key = sequence if len(self.encoders) > 1 else "shared"
        if key not in self.encoders:
            raise ValueError("choose a sequence")
        return self.encoders[key]


class WithTemplates(OneEncoder):
    def templates(self, batch):
        # World x of each voxel, so that a wrong crop shows.
        i = torch.arange(batch.volumes.shape[2], dtype=torch.float32)
        x = batch.affine[:, 0, 0, None] * i + batch.affine[:, 0, 3, None]
        return x[:, None, :, None, None].expand(batch.volumes.shape)


def batch_of(shape=(12, 10, 8), *, studies=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(studies, *shape, dtype=torch.int16)
    masks[0, 9:11, 8:10, 6:8], masks[0, 1, 1, 1] = 2, 1
    affine = torch.eye(4).repeat(studies, 1, 1)
    affine[:, 0, 0], affine[:, :3, 3] = 2.0, torch.tensor([-3.0, 5, 7])
    return Batch(
        volumes=torch.randn(studies, 3, *shape, generator=generator),
        acquired=torch.tensor([[True, True, False], [True, False, False]])[:studies],
        sequences=SEQUENCES,
        affine=affine,
        studies=tuple(f"key{n}" for n in range(studies)),
        subjects=torch.arange(studies),
        reports=(None,) * studies,
        labels=torch.zeros(studies, 0),
        labelled=torch.zeros(studies, 0, dtype=torch.bool),
        findings=(),
        masks=masks,
    )


def segmenter(**options) -> Segmenter:
    net, _ = build_segmenter(OneEncoder(), SEQUENCES, REGIONS, pretrained=False, deep_supervision=1, **options)
    return net


def test_a_frozen_encoder_stays_as_it_was_while_the_decoder_learns():
    net = segmenter(frozen=True)
    # Statistics that every pass in training mode would move.
    net.encoder.add_module("statistics", torch.nn.BatchNorm3d(1))
    net.encoder.register_forward_pre_hook(lambda encoder, given: (given[0], encoder.statistics(given[0][:, :1]))[:1])
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    optimiser = torch.optim.SGD([weight for weight in net.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        loss = net.train().losses(batch_of(), progress=0.0)["overlap"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert net.training and not net.encoder.training and all(weight.grad is None for weight in net.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())
    moved = segmenter()
    moved.train().losses(batch_of(), progress=0.0)["overlap"].backward()
    # The layer that pools is for other tasks.
    assert moved.encoder.training and all(weight.grad is not None for weight in moved.encoder.stages.parameters())


def test_the_pretrained_encoder_is_copied_and_the_decoder_is_that_of_the_arm_from_scratch():
    torch.manual_seed(7)
    recipe = OneEncoder()
    options = {"deep_supervision": 1, "seed": 3}
    ours, coverage = build_segmenter(recipe, SEQUENCES, REGIONS, pretrained=True, **options)
    fresh, nothing = build_segmenter(recipe, SEQUENCES, REGIONS, pretrained=False, **options)
    assert coverage.share == 1 and len(coverage.adapted) == 1 and nothing is None
    volume = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        alike = ours.encoder(volume.expand(-1, 3, -1, -1, -1)).pooled
        torch.testing.assert_close(alike, recipe.backbone()(volume).pooled, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(fresh.encoder(volume.expand(-1, 3, -1, -1, -1)).pooled, alike, atol=1e-2)
    for mine, its in zip(ours.decoder.parameters(), fresh.decoder.parameters(), strict=True):
        torch.testing.assert_close(mine, its)


def test_training_the_copy_leaves_the_recipe_as_it_was():
    recipe = OneEncoder()
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    net, _ = build_segmenter(recipe, SEQUENCES, REGIONS, pretrained=True, deep_supervision=1)
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    net.losses(batch_of(), progress=0.0)["overlap"].backward()
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in recipe.state_dict().items())


def test_from_an_encoder_a_sequence_each_channel_gets_its_own():
    recipe = OneEncoder(bank=SEQUENCES)
    options = {"pretrained": True, "deep_supervision": 1}
    with pytest.raises(ValueError, match="choose a sequence"):
        build_segmenter(recipe, SEQUENCES, REGIONS, **options)
    net, coverage = build_segmenter(recipe, SEQUENCES, REGIONS, input_weights="sequence", **options)
    name = coverage.adapted[0][0]
    first = net.encoder.state_dict()[name]
    for channel, sequence in enumerate(SEQUENCES):
        torch.testing.assert_close(first[:, channel], recipe.backbone(sequence).state_dict()[name][:, 0] / 3)


def test_what_lies_in_an_absent_channel_is_never_read():
    net, batch = segmenter(), batch_of()
    filled = net.fill(batch)
    assert torch.equal(filled[0, :2], batch.volumes[0, :2]) and filled[0, 2].abs().sum() == 0
    before = net.losses(batch, progress=0.0)["overlap"]
    batch.volumes[0, 2] = 1e3
    assert torch.equal(before, net.losses(batch, progress=0.0)["overlap"])


def test_templates_stand_in_where_the_crop_lies_and_are_not_trained():
    recipe = WithTemplates()
    net = segmenter(stand_in=templates_of(recipe, torch.device("cpu")))
    batch = batch_of()
    crop = cut_batch(batch, [(2, 0, 1), (4, 3, 0)], (8, 6, 6))
    filled = net.fill(crop)
    assert filled[0, 2, :, 0, 0].tolist() == [1.0 + 2 * step for step in range(8)]
    assert filled[1, 1, 0, 0, 0] == 5.0 and torch.equal(filled[1, 0], batch.volumes[1, 0, 4:12, 3:9, 0:6])
    assert not any("encoders" in name for name, _ in net.named_parameters())
    with pytest.raises(ValueError, match="keeps no templates"):
        templates_of(OneEncoder(), torch.device("cpu"))


def test_copies_lose_up_to_three_sequences_but_never_the_last_and_never_gain_one():
    torch.manual_seed(0)
    acquired = torch.tensor([[True] * 6, [True] + [False] * 5, [True, False, True, False, False, False]])
    lost = torch.stack([acquired.sum(dim=1) - draw_kept(acquired).sum(dim=1) for _ in range(300)])
    assert [set(column.tolist()) for column in lost.T] == [{0, 1, 2, 3}, {0}, {0, 1}]
    for _ in range(50):
        kept = draw_kept(acquired)
        assert not (kept & ~acquired).any() and kept.any(dim=1).all()
    assert len({tuple(draw_kept(acquired)[0].tolist()) for _ in range(200)}) > 20


@pytest.mark.parametrize("compared", ["embedding", "logits"])
def test_the_consistency_term_is_off_by_default_and_nothing_where_no_sequence_can_go(compared):
    batch = batch_of()
    assert set(segmenter().losses(batch, progress=0.0)) == {"overlap"}
    net = segmenter(consistency_weight=0.5, consistency_on=compared)
    torch.manual_seed(0)
    drawn = [net.losses(batch, progress=0.0)["consistency"].item() for _ in range(8)]
    assert max(drawn) > 0
    lone = dataclasses.replace(batch, acquired=torch.tensor([[True, False, False]] * 2))
    assert net.losses(lone, progress=0.0)["consistency"].item() == 0


def test_studies_without_a_mask_do_not_train():
    net, batch = segmenter(), batch_of()
    batch.masks[:] = -1
    net.losses(batch, progress=0.0)["overlap"].backward()
    assert all(weight.grad is None or weight.grad.abs().sum() == 0 for weight in net.parameters())
    with pytest.raises(ValueError, match="masks=True"):
        net.losses(dataclasses.replace(batch, masks=None), progress=0.0)


def crops(share, *, seed=0, shape=(4, 4, 4), count=40):
    fields = [batch_of(seed=number) for number in range(count)]
    return fields, list(LesionCrops(fields, shape, REGIONS, lesion_share=share, seed=seed))


def test_lesion_crops_hold_a_lesion_of_either_region_as_often_as_asked():
    _, always = crops(1.0)
    held = torch.stack([torch.stack([(crop.masks[0] == label).any() for label in (1, 2)]) for crop in always])
    assert held.any(dim=1).all(), "a crop that was asked to hold a lesion holds none"
    # `core` is one voxel of 9: drawn by region it is centred on in half of the crops or more, not in a ninth.
    assert held[:, 0].float().mean() > 0.4 and held[:, 1].float().mean() > 0.2
    _, never = crops(0.0)
    assert sum(bool((crop.masks[0] > 0).any()) for crop in never) < 30


def test_a_crop_is_a_box_of_its_field_and_keeps_its_place_in_the_world():
    fields, cut = crops(0.5)
    for field, crop in zip(fields, cut, strict=True):
        for row in range(2):
            shift = (crop.affine[row, :3, 3] - field.affine[row, :3, 3]) / torch.tensor([2.0, 1, 1])
            i, j, k = (slice(int(first), int(first) + 4) for first in shift.round())
            assert torch.equal(crop.volumes[row], field.volumes[row, :, i, j, k])
            assert torch.equal(crop.masks[row], field.masks[row, i, j, k])
    assert len({tuple(crop.affine[1, :3, 3].tolist()) for crop in cut}) > 20


def test_crops_depend_on_the_seed_alone():
    same, again, other = (crops(0.5, seed=seed)[1] for seed in (1, 1, 2))
    assert all(torch.equal(a.affine, b.affine) for a, b in zip(same, again, strict=True))
    assert any(not torch.equal(a.affine, b.affine) for a, b in zip(same, other, strict=True))


def test_a_crop_as_large_as_the_field_is_the_field():
    fields, cut = crops(1.0, shape=(12, 10, 8), count=2)
    assert np.array_equal(cut[0].volumes, fields[0].volumes) and torch.equal(cut[0].affine, fields[0].affine)
