"""Every backbone can be made wider and narrower by its settings, or says that it cannot."""

import pytest

from tomoglot.config import Settings
from tomoglot.encoders import vision
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.res_enc import ResEnc
from tomoglot.encoders.swin import Swin
from tomoglot.encoders.uniformer import UniFormer
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.vit import ViT
from tomoglot.encoders.width import scale_width


@pytest.mark.parametrize("name", vision.names())
def test_twice_the_width_is_twice_the_embedding_of_every_backbone(name: str) -> None:
    config = VisionEncoder.Config.named(f"{name}:tiny")
    assert scale_width(config, 1.0) is config
    wide = scale_width(config, 2.0)
    try:
        one, two = (settings.build() for settings in (config, wide))
    except ValueError as error:
        assert "pip install" in str(error)  # an extra that is not there
        return
    assert two.embedding == 2 * one.embedding
    count = [sum(p.numel() for p in encoder.parameters()) for encoder in (one, two)]
    assert 2 < count[1] / count[0] < 4.5


def test_widths_are_rounded_to_what_divides_them() -> None:
    assert scale_width(PlainConv.Config(), 0.3).widths == (8, 8, 16, 40)
    assert scale_width(ResEnc.Config(), 0.3).widths == (5, 10, 19, 38)
    assert scale_width(ResEnc.Config(norm_groups=8), 0.3).widths == (8, 8, 16, 40)
    assert scale_width(UniFormer.Config(), 0.5).widths == (32, 64, 128, 256)
    # 24 channels: 3, 6, 12 and 24 heads ask for multiples of 3 alone, since stages double.
    assert scale_width(Swin.Config(width=24), 0.4).width == 9
    assert scale_width(ViT.Config(), 0.4).width == 312
    assert scale_width(PlainConv.Config(), 0.001).widths == (8, 8, 8, 8)


def test_only_the_width_changes() -> None:
    config = PlainConv.Config(blocks=(0, 2, 1, 3), pooling="every_stage")
    assert scale_width(config, 2.0).but(widths=config.widths) == config


def test_an_encoder_whose_width_is_unknown_is_refused_by_name() -> None:
    class Odd(VisionEncoder.Config):
        channels: int = 3

    assert issubclass(Odd, Settings)
    with pytest.raises(ValueError, match=r"encoder test_width cannot be multiplied.*--widths 1"):
        scale_width(Odd(), 2.0)
    assert scale_width(Odd(), 1.0) == Odd()
