"""Every backbone of the room keeps the contract: tomorrow's file is tested without editing this one."""

import importlib
import warnings

import pytest
import torch

from tomoglot.encoders.skip_decoder import SkipDecoder
from tomoglot.encoders.vision import VisionEncoder, names

# Files whose network is an optional package's, and what is imported from it.
OPTIONAL = {"swin": ("einops", "monai")}


@pytest.fixture(params=names())
def encoder(request):
    for package in OPTIONAL.get(request.param, ()):
        pytest.importorskip(package, reason=f"encoders/{request.param}.py needs {package}")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return VisionEncoder.Config.named(f"{request.param}:tiny").build()


def test_pyramid_tokens_and_pooled_are_as_promised(encoder):
    features = encoder(torch.randn(2, 1, 32, 48, 32))
    assert len(features.pyramid) == len(encoder.widths) == len(encoder.strides)
    assert list(encoder.strides) == sorted(set(encoder.strides))
    for level, width, stride in zip(features.pyramid, encoder.widths, encoder.strides, strict=True):
        assert level.shape == (2, width, *(-(-edge // stride) for edge in (32, 48, 32)))
    assert features.tokens.shape == (2, features.pyramid[-1][0, 0].numel(), encoder.embedding)
    assert features.pooled.shape == (2, encoder.embedding)
    assert all(bool(value.isfinite().all()) for value in (*features.pyramid, features.tokens, features.pooled))


def test_tokens_are_the_coarsest_map_in_voxel_order(encoder):
    features = encoder.eval()(torch.randn(1, 1, 32, 48, 32))
    torch.testing.assert_close(features.tokens, features.pyramid[-1].flatten(2).transpose(1, 2))


def test_studies_do_not_leak_into_each_other(encoder):
    volumes = torch.randn(3, 1, 32, 32, 32)
    encoder.eval()
    torch.testing.assert_close(encoder(volumes).pooled[1:2], encoder(volumes[1:2]).pooled, atol=1e-4, rtol=1e-3)


def test_the_skip_decoder_takes_any_of_them_as_segmentation_sets_it(encoder):
    """With two coarser outputs, which a transformer's one map did not have."""
    decoder = SkipDecoder(1, encoder.widths, encoder.strides, out_channels=2)
    volumes = torch.randn(1, 1, 32, 48, 32)
    sizes = [output.shape for output in decoder(encoder.eval()(volumes), volumes)]
    assert sizes[0] == (1, 2, 32, 48, 32) and len(sizes) == 3


def test_settings_survive_being_written_and_read(encoder):
    config = encoder.config
    assert VisionEncoder.Config.from_json(config.to_json()) == config
    assert type(config.but(in_channels=3).build()) is type(encoder)


def test_another_number_of_channels_is_refused(encoder):
    with pytest.raises(ValueError, match="reads 1 channels, the volumes have 2"):
        encoder(torch.randn(1, 2, 32, 32, 32))


@pytest.mark.parametrize("name", names())
def test_a_file_has_tiny_and_small(name):
    module = importlib.import_module(f"tomoglot.encoders.{name}")
    for preset in ("tiny", "small"):
        assert isinstance(getattr(module, preset)(), VisionEncoder.Config)
