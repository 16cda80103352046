"""What zero-shot asks: for each finding, sentences that a radiologist would write if it is there, and if it is not.

Several wordings of one question are averaged, so that no single phrase decides. The sentences are ours. A user's own
come as a JSON file: ``{"mass": {"present": ["..."], "absent": ["..."]}}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from tomoglot.config import Settings


class Prompts(Settings):
    """The question for one finding: sentences for its presence and for its absence."""

    present: tuple[str, ...] = Field(min_length=1)
    absent: tuple[str, ...] = Field(min_length=1)


PROMPTS: Mapping[str, Prompts] = {
    "mass": Prompts(
        present=(
            "There is an intra-axial mass.",
            "A space-occupying lesion with contrast enhancement is seen.",
            "Enhancing tumour with surrounding oedema.",
            "Findings suggest a brain tumour.",
        ),
        absent=(
            "There is no intra-axial mass.",
            "No space-occupying lesion is seen.",
            "No enhancing tumour.",
            "Nothing suggests a brain tumour.",
        ),
    ),
    "demyelination": Prompts(
        present=(
            "Multiple periventricular white matter lesions are seen.",
            "Hyperintense plaques in the white matter, in keeping with demyelination.",
            "The pattern of lesions suggests multiple sclerosis.",
            "There are demyelinating lesions.",
        ),
        absent=(
            "There are no white matter lesions.",
            "The white matter is normal, without plaques.",
            "Nothing suggests multiple sclerosis.",
            "There are no demyelinating lesions.",
        ),
    ),
    "infarct": Prompts(
        present=(
            "There is an acute infarct with restricted diffusion.",
            "A wedge-shaped area of diffusion restriction in an arterial territory.",
            "Findings of recent ischaemic stroke.",
        ),
        absent=(
            "There is no acute infarct.",
            "No restricted diffusion.",
            "No sign of recent ischaemic stroke.",
        ),
    ),
    "haemorrhage": Prompts(
        present=(
            "There is an intracranial haemorrhage.",
            "A parenchymal haematoma with susceptibility signal loss is seen.",
            "Blood products are present.",
        ),
        absent=(
            "There is no intracranial haemorrhage.",
            "No haematoma and no susceptibility signal loss.",
            "No blood products.",
        ),
    ),
    "volume_loss": Prompts(
        present=(
            "There is generalised cerebral volume loss.",
            "The ventricles and sulci are enlarged, in keeping with atrophy.",
            "Brain atrophy, more than expected for age.",
        ),
        absent=(
            "Brain volume is preserved.",
            "The ventricles and sulci are of normal size.",
            "No atrophy.",
        ),
    ),
    "oedema": Prompts(
        present=(
            "There is surrounding vasogenic oedema.",
            "Perilesional high signal in keeping with oedema.",
            "Marked oedema of the adjacent white matter.",
        ),
        absent=(
            "There is no oedema.",
            "No perilesional high signal.",
            "The adjacent white matter shows no oedema.",
        ),
    ),
    "midline_shift": Prompts(
        present=(
            "There is midline shift.",
            "Midline structures are displaced by mass effect.",
            "Shift of the septum pellucidum to the other side.",
        ),
        absent=(
            "There is no midline shift.",
            "Midline structures are central.",
            "The septum pellucidum lies in the midline.",
        ),
    ),
    "normal": Prompts(
        present=(
            "Normal examination.",
            "Normal appearance of the brain.",
            "No abnormality is seen.",
            "Unremarkable study.",
        ),
        absent=(
            "Abnormal examination.",
            "Abnormal appearance of the brain.",
            "There is an abnormality.",
            "A lesion is present.",
        ),
    ),
}


def read_prompts(path: Path) -> dict[str, Prompts]:
    """Read a user's prompts, by finding.

    Raises:
        ValueError: the file is not such JSON, or a finding lacks sentences for one of the two sides.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: cannot be read as JSON prompts: {error}") from error
    shape = '{"finding": {"present": ["..."], "absent": ["..."]}}'
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{path.name}: prompts look like {shape}")
    prompts: dict[str, Prompts] = {}
    for finding, sides in given.items():
        try:
            prompts[finding] = Prompts.model_validate(sides)
        except ValueError as error:
            raise ValueError(f"{path.name}: the prompts of {finding!r} do not look like {shape}: {error}") from error
    return prompts
