"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net: what the channels show and the labels mean."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.sequence import canonical_sequence

# Their words for the tissues of `lesion.LESIONS`, letters only.
_TISSUES = {
    "edema": "oedema", "oedema": "oedema", "peritumoraledema": "oedema", "necrosis": "necrosis",
    "necroticcore": "necrosis", "enhancingtumor": "rim", "enhancingtumour": "rim", "nonenhancingtumor": "non_enhancing",
    "nonenhancingtumour": "non_enhancing", "mslesion": "plaque", "plaque": "plaque", "infarct": "infarct",
    "strokelesion": "infarct", "hemorrhage": "blood", "haemorrhage": "blood",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Sequences in the order of the channels, and tissues by number: None where a mask means anything else."""

    sequences: tuple[str, ...]
    tissues: Mapping[int, str] | None
    listed: Mapping[str, Any]

    def mask(self, path: Path | None) -> dict[str, Any]:
        """`Study`'s fields for the mask of a case: none where its numbers are no tissues."""
        return {} if path is None or self.tissues is None else {"mask": path, "mask_labels": self.tissues}

    def refuse_masks(self, gathered: Gathered) -> None:
        """Say once why no mask of the set is read, where that is so."""
        if self.tissues is None:
            names = ", ".join(str(name) for pair in self.listed["labels"].items() for name in pair)[:200]
            evidence = f"no mask is read: the labels ({names}) are no lesion tissues; a table can say what they are"
            gathered.refuse("mask-labels-unknown", evidence, Path("dataset.json"), sequence="mask")


def read_dataset_json(root: Path) -> DataSet:
    """Read `root/dataset.json`, in the Decathlon's form (`modality`) or nnU-Net's second (`channel_names`).

    Raises:
        ValueError: the file is not JSON of either form, or a channel's name cannot be used.
    """
    try:
        listed = json.loads((root / "dataset.json").read_text("utf-8"))
        channels = listed.get("channel_names", listed.get("modality"))
        names = [canonical_sequence(str(channels[number])) for number in sorted(channels, key=int)]
        labels = dict(listed["labels"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"dataset.json: no channels and labels as MSD or nnU-Net write them ({error!r})") from None
    many = {name for name, count in Counter(names).items() if count > 1}
    sequences = [f"{name}_{place}" if name in many else name for place, name in enumerate(names)]
    # The Decathlon writes {"1": "edema"}, nnU-Net {"edema": 1} and lists of numbers for regions.
    pairs = [(number, name) if str(number).isdigit() else (name, number) for number, name in labels.items()]
    tissues: dict[int, str] | None = {}
    for number, name in pairs:
        tissue = _TISSUES.get(re.sub(r"[^a-z]", "", str(name).lower()))
        if not str(number).isdigit() or (int(number) != 0 and tissue is None):
            tissues = None
            break
        if int(number) != 0 and tissue is not None and tissues is not None:
            tissues[int(number)] = tissue
    return DataSet(sequences=tuple(sequences), tissues=tissues or None, listed=listed)
