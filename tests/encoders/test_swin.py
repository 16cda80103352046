"""MONAI's Swin behind our contract: the same maps, any size of input, and a clear word where MONAI is not installed."""

import subprocess
import sys
import warnings

import pytest
import torch

from tomoglot.encoders import swin
from tomoglot.encoders.vision import VisionEncoder, names
from tomoglot.encoders.weights import load_weights

DEV = "Swin needs the monai extra: pip install 'tomoglot[monai]'"


@pytest.fixture(scope="module")
def monai():
    pytest.importorskip("einops", reason=DEV)
    pytest.importorskip("monai", reason=DEV)
    with warnings.catch_warnings():
        # MONAI's own imports warn about what it will change.
        warnings.simplefilter("ignore")
        from monai.networks.nets import swin_unetr
    return swin_unetr


def build(**changes):
    torch.manual_seed(0)
    return swin.tiny().but(**changes).build().eval()


def theirs_of(monai, config):
    return monai.SwinTransformer(
        in_chans=1,
        embed_dim=config.width,
        window_size=(config.window,) * 3,
        patch_size=(2, 2, 2),
        depths=config.depths,
        num_heads=config.heads,
        downsample="mergingv2" if config.merging == "eight_in_order" else "merging",
    ).eval()


@pytest.mark.parametrize("merging", ["eight", "eight_in_order"])
@pytest.mark.parametrize("shape", [(32, 32, 48), (17, 22, 19)])
def test_the_maps_are_monais(monai, merging, shape):
    encoder = build(merging=merging)
    theirs = theirs_of(monai, encoder.config)
    # The names are theirs: a released file loads with nothing missing, past the prefix of the network it was part of.
    released = {f"swinViT.{name}": value for name, value in theirs.state_dict().items()}
    assert load_weights(encoder, released, strip="swinViT.", min_share=1.0).unexpected == ()
    volumes = torch.randn(2, 1, *shape)
    with torch.no_grad():
        features = encoder(volumes)
        for ours, their in zip(features.pyramid, theirs(volumes), strict=True):
            torch.testing.assert_close(ours, their)


def test_merging_reads_the_corners_it_names():
    """Each step of the coarse map by hand; with six corners, what the other two hold is never seen."""
    fine = torch.randn(1, 3, 4, 2, 5)
    filled = torch.nn.functional.pad(fine, (0, 0, 0, 0, 0, 0, 0, 1))
    for name, corners in swin.CORNERS.items():
        merging = swin._Merging(5, norm_layer=torch.nn.LayerNorm, spatial_dims=3, corners=corners)
        coarse = merging(fine)
        assert coarse.shape == (1, 2, 2, 1, 10)
        for i in range(2):
            for j in range(2):
                steps = [filled[0, 2 * i + a, 2 * j + b, c] for a, b, c in corners]
                torch.testing.assert_close(coarse[0, i, j, 0], merging.reduction(merging.norm(torch.cat(steps))))
        changed = filled.clone()
        changed[:, 0::2, 1::2, 1::2] += 9
        unseen = torch.equal(merging(changed), merging(filled))
        assert unseen == (name == "six")
    assert len(set(swin.CORNERS["six"])) == 6
    assert all(len(corners) == 8 for corners in swin.CORNERS.values())
    assert set(swin.CORNERS["eight"]) == set(swin.CORNERS["eight_in_order"])


@pytest.mark.parametrize("shape", [(32, 40, 24), (17, 22, 19), (40, 36, 1)])
def test_the_pyramid_has_the_promised_widths_and_strides(monai, shape):
    encoder = build()
    features = encoder(torch.randn(2, 1, *shape))
    for level, width, stride in zip(features.pyramid, encoder.widths, encoder.strides, strict=True):
        assert level.shape == (2, width, *(-(-edge // stride) for edge in shape))
    coarse = features.pyramid[-1]
    torch.testing.assert_close(features.tokens, coarse.flatten(2).transpose(1, 2))
    torch.testing.assert_close(features.pooled, coarse.mean((2, 3, 4)))


def test_an_odd_edge_is_a_plane_of_zeros_further(monai):
    encoder = build()
    volume = torch.randn(1, 1, 31, 32, 32)
    filled = torch.nn.functional.pad(volume, (0, 0, 0, 0, 0, 1))
    torch.testing.assert_close(encoder(volume).tokens, encoder(filled).tokens)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_learns(monai, checkpointing):
    encoder = build(checkpointing=checkpointing).train()
    encoder(torch.randn(1, 1, 64, 64, 64)).pooled.square().sum().backward()
    silent = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_weights_of_one_channel_fill_an_encoder_of_four_and_answer_alike(monai):
    one, four = build(), build(in_channels=4)
    assert load_weights(four, one.state_dict(), adapt="mean").share == 1.0
    volume = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(four(volume.expand(-1, 4, -1, -1, -1)).pooled, one(volume).pooled, atol=1e-5, rtol=1e-4)


def test_the_released_sizes(monai):
    """48 wide, the coarsest map has 768 channels at 1/32 (MG-3D and MedMAP, code); MONAI counts 8,062,002 weights."""
    encoder = VisionEncoder.Config.named("swin:base").build()
    assert (encoder.widths, encoder.strides) == ((48, 96, 192, 384, 768), (2, 4, 8, 16, 32))
    assert sum(value.numel() for value in encoder.parameters()) == sum(
        value.numel() for value in theirs_of(monai, encoder.config).parameters()
    )


def test_without_monai_the_error_names_the_extra_and_the_other_encoders_still_build(monkeypatch):
    for missing in ("monai.networks.nets.swin_unetr", "einops"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, missing, None)
            assert "swin" in names()
            config = VisionEncoder.Config.named("swin:base")
            with pytest.raises(ValueError, match=r"pip install 'tomoglot\[monai\]'"):
                config.build()


def test_naming_a_swin_loads_no_monai():
    code = (
        "import sys; from tomoglot.encoders.vision import VisionEncoder; VisionEncoder.Config.named('swin:base'); "
        "print(sorted({'monai', 'einops'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_impossible_sizes_are_refused(monai):
    with pytest.raises(ValueError, match="must divide the channels"):
        swin.tiny().but(heads=(5, 2, 4, 8))
    with pytest.raises(ValueError, match="each stage needs a block"):
        swin.tiny().but(depths=(2, 0, 2, 2))
    with pytest.raises(ValueError, match="reads 1 channels, the volumes have 2"):
        build()(torch.randn(1, 2, 32, 32, 32))
