"""A recipe's one-channel encoder as an encoder of several channels, one a sequence: what segments and what classifies.

Building and loading are two calls, because a task draws its head's weights between them: both arms of a comparison then
draw the same numbers, and differ by what is loaded alone.
"""

from __future__ import annotations

from tomoglot.encoders.vision import VisionEncoder
from tomoglot.encoders.weights import Adaptation, Coverage, load_weights
from tomoglot.recipes.recipe import Recipe


def channel_settings(
    recipe: Recipe, sequences: tuple[str, ...], *, how: Adaptation, from_sequence: str | None
) -> tuple[VisionEncoder, VisionEncoder.Config]:
    """The encoder that a recipe lends, and its settings with these sequences as channels.

    Raises:
        ValueError: the encoder cannot be built anew, or there is one a sequence and none was chosen.
    """
    if how == "sequence" and from_sequence is None:
        from_sequence = sequences[0]
    source = recipe.backbone(from_sequence)
    settings = getattr(source, "config", None)
    if not isinstance(settings, VisionEncoder.Config):
        raise ValueError(f"{type(source).__name__} keeps no `config`: it cannot be built for {len(sequences)} channels")
    return source, settings.but(in_channels=len(sequences))


def load_channels(
    encoder: VisionEncoder, source: VisionEncoder, recipe: Recipe, sequences: tuple[str, ...], *, how: Adaptation
) -> Coverage:
    """Copy the lent encoder's weights, its first convolution made to fit the channels; returns what was loaded.

    Raises:
        ValueError: the weights do not fit.
    """
    each = [recipe.backbone(name).state_dict() for name in sequences] if how == "sequence" else []
    return load_weights(encoder, source.state_dict(), adapt=how, sources=each)
