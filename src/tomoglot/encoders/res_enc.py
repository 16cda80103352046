"""The residual encoder of nnU-Net's ResEnc presets (Isensee 2024, nnU-Net Revisited): a UNet's way down.

Sizes are those of the public code, where the presets are three planners (`nnUNetPlannerResEncM`, `L`, `XL`) and the
network is dynamic-network-architectures' `ResidualEncoder`:

| value                                   | m(), l()                   | mark   |
|---|---|---|
| residual blocks a stage                 | 1, 3, 4, 6, 6, 6           | code: `UNet_blocks_per_stage_encoder` |
| widths                                  | 32, doubled up to 320      | code: base 32, `UNet_max_features_3d` 320 |
| stages                                  | 6                          | inferred: 128^3 ends at an edge of 4 |
| strides                                 | 1, then 2                  | code, for voxels of equal edges |
| stem                                    | a convolution, full size   | code |
| block                                   | two 3^3; beside them a mean, then 1^3 | code: `BasicBlockD` |
| instance norm, leaky ReLU 0.01          | yes                        | code |

M, L and XL differ in the memory that the planner may fill (8, 24 and 40 GB: code), so in crop and batch, not in width
or depth: a larger crop may get a stage more. Hence `l()` is the network of `m()`, meant for a larger crop.

Differs from the code: no bias before a norm, which takes it away again; strides are the same along all axes; `tiny()`
and `small()` start at half the size, as our other encoders do.
"""

from __future__ import annotations

from typing import Literal, Self

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.encoders.vision import VisionEncoder, VisionFeatures

SLOPE = 0.01


class ResEnc(VisionEncoder):
    """Stages of residual blocks; the first block of a stage takes its stride."""

    class Config(VisionEncoder.Config):
        """Sizes of the stages, fine to coarse.

        Attributes:
            widths: channels of each stage.
            blocks: residual blocks of each stage.
            first_stride: 1 puts the first stage at full size, as nnU-Net does: eight times the memory of 2.
            stem: a convolution at full size before the stages.
            norm_groups: channels are normed in so many groups; None norms each by itself, which is instance norm.
        """

        widths: tuple[int, ...] = Field((16, 32, 64, 128), min_length=1)
        blocks: tuple[int, ...] = (1, 2, 2, 2)
        first_stride: Literal[1, 2] = 2
        stem: bool = False
        norm_groups: int | None = Field(None, ge=1)

        @model_validator(mode="after")
        def _stages_agree(self) -> Self:
            if len(self.blocks) != len(self.widths):
                raise ValueError(f"blocks has {len(self.blocks)} stages, widths has {len(self.widths)}: give one each")
            if min(self.blocks) < 1:
                raise ValueError(f"blocks {self.blocks}: each stage needs one, which takes its stride")
            if self.norm_groups and any(width % self.norm_groups for width in self.widths):
                raise ValueError(f"widths {self.widths} must be multiples of norm_groups, {self.norm_groups}")
            return self

        def build(self) -> ResEnc:
            """Make the module."""
            return ResEnc(self)

    def __init__(self, config: ResEnc.Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.widths = config.widths
        self.strides = tuple(config.first_stride * 2**stage for stage in range(len(config.widths)))
        self.embedding = config.widths[-1]
        groups, current = config.norm_groups, config.in_channels
        self.stem: nn.Module = nn.Identity()
        if config.stem:
            self.stem = nn.Sequential(*_conv_norm(current, config.widths[0], groups=groups), nn.LeakyReLU(SLOPE))
            current = config.widths[0]
        stages = []
        for stage, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            stride = config.first_stride if stage == 0 else 2
            first = _Residual(current, width, stride=stride, groups=groups)
            stages.append(nn.Sequential(first, *(_Residual(width, width, groups=groups) for _ in range(count - 1))))
            current = width
        self.stages = nn.ModuleList(stages)

    def forward(self, volumes: Float[Tensor, "b c i j k"]) -> VisionFeatures:
        """Encode volumes; an odd edge is rounded up at each stage.

        Raises:
            ValueError: wrong number of channels, or volumes that end as one voxel, whose instance norm is zero.
        """
        if volumes.shape[1] != self.in_channels:
            raise ValueError(f"this encoder reads {self.in_channels} channels, the volumes have {volumes.shape[1]}")
        if self.config.norm_groups is None and max(volumes.shape[2:]) <= self.strides[-1]:
            raise ValueError(
                f"volumes of {tuple(volumes.shape[2:])} voxels end as one voxel, and instance norm makes it zero: give "
                f"an edge above {self.strides[-1]}, fewer stages, or norm_groups"
            )
        current, pyramid = self.stem(volumes), []
        for stage in self.stages:
            current = stage(current)
            pyramid.append(current)
        tokens = current.flatten(2).transpose(1, 2)
        return VisionFeatures(pyramid=tuple(pyramid), tokens=tokens, pooled=tokens.mean(1))

    def centre(self, stage: int) -> float:
        """Between the padded convolutions' (the first voxel) and the means' beside them (the middle of the step)."""
        return (self.strides[stage] - 1) / 4


class _Residual(nn.Module):
    """Two convolutions, added to the input before the last activation (He 2019, ResNet-D: pooled, then 1^3)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, groups: int | None) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Sequential(*_conv_norm(inputs, outputs, stride=stride, groups=groups), nn.LeakyReLU(SLOPE))
        self.conv2 = nn.Sequential(*_conv_norm(outputs, outputs, groups=groups))
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(*_conv_norm(inputs, outputs, kernel=1, groups=groups))

    def forward(self, features: Tensor) -> Tensor:
        # Rounded up at an odd edge, as the strided convolution is.
        pooled = F.avg_pool3d(features, self.stride, ceil_mode=True) if self.stride > 1 else features
        return F.leaky_relu(self.skip(pooled) + self.conv2(self.conv1(features)), SLOPE)


def _conv_norm(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int | None) -> list[nn.Module]:
    convolution = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, a=SLOPE)  # code: He initialisation
    return [convolution, nn.GroupNorm(groups or outputs, outputs)]


def tiny() -> ResEnc.Config:
    """For tests and CPUs (ours): 0.2 million parameters, three stages."""
    return ResEnc.Config(widths=(16, 32, 64), blocks=(1, 1, 1), norm_groups=8)


def small() -> ResEnc.Config:
    """Between the two (ours): 2.1 million parameters."""
    return ResEnc.Config(norm_groups=8)


def m() -> ResEnc.Config:
    """ResEnc M's encoder, for crops of about 128^3: 90 million parameters."""
    return ResEnc.Config(widths=(32, 64, 128, 256, 320, 320), blocks=(1, 3, 4, 6, 6, 6), first_stride=1, stem=True)


def l() -> ResEnc.Config:  # noqa: E743 - nnU-Net's own name for it
    """ResEnc L's encoder: that of `m`, for a larger crop or batch (see the top of this file)."""
    return m()
