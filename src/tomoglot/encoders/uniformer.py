"""UniFormer for volumes: convolution blocks where the map is fine, self-attention where it is coarse (Li 2022).

This is BrainMVP's encoder (Rui 2025), and its modules carry the released names, so that a released file loads through
`load_weights(encoder, tensors, strip="encoder.uniformer.")` with nothing missing. Two habits of the released code are
kept because the weights were trained with them: patch embeddings normalise with another epsilon than the blocks do,
and the axes are turned before the first layer (see `released_axes`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.encoders.vision import VisionEncoder, VisionFeatures

NUM_STAGES = 4
Four = tuple[int, int, int, int]


class UniFormer(VisionEncoder):
    """Four stages, each behind a patch embedding that halves the grid: two of convolution, two of attention."""

    class Config(VisionEncoder.Config):
        """Sizes of the four stages, fine to coarse.

        Attributes:
            depths: blocks of each stage.
            widths: channels of each stage.
            head_width: channels of one attention head; it divides the widths of the two coarse stages.
            mlp_ratio: width of a block's hidden layer over its own.
            released_axes: work on the axes (k, i, j), as the released weights were trained; the pyramid and tokens
                still come back in our order. Switch off only to train from scratch.
        """

        depths: Four = (3, 4, 8, 3)
        widths: Four = (64, 128, 320, 512)
        head_width: int = Field(64, ge=1)
        mlp_ratio: int = Field(4, ge=1)
        released_axes: bool = True

        @model_validator(mode="after")
        def _heads_fit(self) -> UniFormer.Config:
            if any(width % self.head_width for width in self.widths[2:]):
                raise ValueError(f"head_width {self.head_width} must divide the coarse widths, {self.widths[2:]}")
            if min(self.depths) < 1:
                raise ValueError(f"depths {self.depths}: each stage needs a block")
            return self

        def build(self) -> UniFormer:
            """Make the module."""
            return UniFormer(self)

    def __init__(self, config: UniFormer.Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.widths = config.widths
        self.strides = tuple(2 ** (stage + 1) for stage in range(NUM_STAGES))
        self.embedding = config.widths[-1]
        inputs = (config.in_channels, *config.widths)
        attention = partial(_AttentionBlock, head_width=config.head_width)
        # Names with a number, not a list of stages: they are the names in the released file.
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True), start=1):
            block = _ConvBlock if stage <= 2 else attention
            self.add_module(f"patch_embed{stage}", _PatchEmbedding(inputs[stage - 1], width))
            blocks = (block(width, hidden=config.mlp_ratio * width) for _ in range(depth))
            self.add_module(f"blocks{stage}", nn.ModuleList(blocks))
        self.norm = nn.BatchNorm3d(config.widths[-1])
        self.apply(_initialise)

    def forward(self, volumes: Float[Tensor, "b c i j k"]) -> VisionFeatures:
        """Encode volumes; an edge that 16 does not divide loses its remainder at the coarse end.

        Raises:
            ValueError: wrong number of channels, or an edge under 16 voxels.
        """
        maps = self.stages(volumes)
        if self.config.released_axes:
            maps = [features.permute(0, 1, 3, 4, 2) for features in maps]
        tokens = maps[-1].flatten(2).transpose(1, 2)
        return VisionFeatures(pyramid=tuple(maps), tokens=tokens, pooled=tokens.mean(1))

    def stages(self, volumes: Float[Tensor, "b c i j k"]) -> list[Tensor]:
        """Maps of the four stages in the order the network works in: (k, i, j) under `released_axes`."""
        if volumes.shape[1] != self.in_channels:
            raise ValueError(f"this encoder reads {self.in_channels} channels, the volumes have {volumes.shape[1]}")
        if min(volumes.shape[2:]) < self.strides[-1]:
            raise ValueError(
                f"volumes of {tuple(volumes.shape[2:])} voxels: every edge must be at least {self.strides[-1]}"
            )
        features = volumes.permute(0, 1, 4, 2, 3) if self.config.released_axes else volumes
        maps = []
        for stage in range(1, NUM_STAGES + 1):
            features = self.get_submodule(f"patch_embed{stage}")(features)
            for block in self.get_submodule(f"blocks{stage}").children():
                features = block(features)
            maps.append(features)
        maps[-1] = self.norm(maps[-1])
        return maps


class _PatchEmbedding(nn.Module):
    """Convolution of kernel and stride 2, then a norm over channels with the default epsilon, 1e-5."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(inputs, outputs, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.proj(features).movedim(1, -1)).movedim(-1, 1).contiguous()


class _ConvBlock(nn.Module):
    """Position, local mixing and MLP, all convolutions, each added to its input."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv1 = nn.Conv3d(width, width, 1)
        self.conv2 = nn.Conv3d(width, width, 1)
        self.attn = nn.Conv3d(width, width, 5, padding=2, groups=width)
        self.norm2 = nn.BatchNorm3d(width)
        self.mlp = _Mlp(width, hidden, layer=partial(nn.Conv3d, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.pos_embed(features)
        features = features + self.conv2(self.attn(self.conv1(self.norm1(features))))
        return features + self.mlp(self.norm2(features))


class _AttentionBlock(nn.Module):
    """Position by convolution, then attention over all tokens and an MLP, each added to its input."""

    def __init__(self, width: int, *, hidden: int, head_width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, head_width=head_width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, hidden, layer=nn.Linear)

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.pos_embed(features)
        tokens = features.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(features.shape)


class _Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, *, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b p e"]) -> Float[Tensor, "b p e"]:
        query, key, value = self.qkv(tokens).unflatten(2, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    """Two layers with the exact GELU between."""

    def __init__(self, width: int, hidden: int, *, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.fc1 = layer(width, hidden)
        self.fc2 = layer(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features)))


def _initialise(module: nn.Module) -> None:
    """Small normal weights for the linear layers (inferred: usual for attention; convolutions keep torch's)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def small() -> UniFormer.Config:
    """BrainMVP's encoder: 22 million parameters (code)."""
    return UniFormer.Config()


def narrow() -> UniFormer.Config:
    """The released layout at reduced size, used to check that ours computes the same."""
    return UniFormer.Config(depths=(1, 2, 2, 1), widths=(16, 32, 48, 64), head_width=16)


def tiny() -> UniFormer.Config:
    """For tests: one block a stage."""
    return UniFormer.Config(depths=(1, 1, 1, 1), widths=(16, 32, 48, 64), head_width=16)
