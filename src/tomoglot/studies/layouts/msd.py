"""Medical Segmentation Decathlon, a task: `dataset.json`, `imagesTr`, `labelsTr`; channels lie on a fourth axis.

Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications (2022); medicaldecathlon.com, CC BY-SA.
Known from its documentation and from code that reads it. A mask is read only where every label is a lesion tissue that
we know (Task01_BrainTumour); organs and other lesions are not, and a row says so. Cases of `imagesTs` have no mask. A
case is taken for a subject: the set does not say which cases are of one person.
"""

from __future__ import annotations

from pathlib import Path

from tomoglot.studies.cases import Gathered
from tomoglot.studies.dataset_json import read_dataset_json
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series


def matches(root: Path) -> bool:
    """A folder with `dataset.json` and `imagesTr`, whose files do not number their channels as nnU-Net's do."""
    has_both = (root / "dataset.json").is_file() and (root / "imagesTr").is_dir()
    return has_both and not any(root.glob("imagesTr/*_0000.*"))


def read(root: Path) -> Sources:
    """Each case that `dataset.json` lists is one subject with one study; each channel is one series.

    Raises:
        ValueError: `dataset.json` is not that of the Decathlon.
    """
    data = read_dataset_json(root)
    gathered = Gathered()
    masks: dict[str, Path] = {}
    for one in [*data.listed.get("training", ()), *data.listed.get("test", ())]:
        said = one if isinstance(one, dict) else {"image": one}
        image, mask = root / str(said.get("image")), root / str(said.get("label", ""))
        if not all(path.resolve().is_relative_to(root.resolve()) for path in (image, mask)):
            gathered.refuse("outside", "dataset.json names a file outside its folder", image)
            continue
        case = image.name.removesuffix(".gz").removesuffix(".nii")
        if "label" in said:
            masks[case] = mask
        for number, sequence in enumerate(data.sequences):
            channel = number if len(data.sequences) > 1 else None
            gathered.add(case, "scan", Series(sequence=sequence, path=image, channel=channel))
    data.refuse_masks(gathered)
    return gathered.sources(lambda case, _: data.mask(masks.get(case)))
