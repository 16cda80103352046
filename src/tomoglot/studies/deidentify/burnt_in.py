"""Text burnt into the pixels: what a header admits, what its kind of image makes likely, and what looks like letters.

The detector looks for rows of letters: small bright (or dark) shapes with sharp edges, of one height and one grey,
side by side on one line. It finds labels as scanners and viewers draw them; it misses handwriting, slanted or very
small letters, and text paler than the tissue around it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Ultrasound, visible light, secondary captures and documents: images of screens, drawn by people (PS3.4 B.5).
_KINDS = ("1.2.840.10008.5.1.4.1.1." + end for end in ("3.", "6.", "7", "77.", "104."))
_DRAWN = tuple(_KINDS)
_MODALITIES = frozenset(("US", "SC", "OT", "ES", "XC", "GM", "DOC", "OP", "SM", "IVUS", "SR", "KO"))
_WORDS = ("SCREEN SAVE", "SCREEN", "SECONDARY CAPTURE", "DOSE", "REPORT", "PROTOCOL")
# Heights of letters in pixels, their shape, and how alike the letters of a row are; see tests/studies/test_burnt_in.py.
_HEIGHTS = (5, 48)
_LETTERS = 4


def burnt_in_header(dataset: Any) -> str:
    """Why a file may show text, from its header; empty where nothing says so."""
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        return "the header says that text is burnt in"
    if str(dataset.get("SOPClassUID") or "").startswith(_DRAWN) or dataset.get("ConversionType"):
        return "a secondary capture, an ultrasound image, a photograph or a document"
    if str(dataset.get("Modality") or "").strip().upper() in _MODALITIES:
        return "an image of a kind that usually shows text"
    words = dataset.get("ImageType") or ()
    if {str(word).strip().upper() for word in ([words] if isinstance(words, str) else words)} & set(_WORDS):
        return "the image type says that it was taken from a screen"
    if int(dataset.get("SamplesPerPixel") or 1) > 1:
        return "a colour image: a screen, a legend or a fused map"
    return ""


def burnt_in_pixels(pixels: NDArray[np.generic]) -> bool:
    """Whether one image (rows, columns) shows a row of four or more letters."""
    image = np.asarray(pixels, np.float32)
    low, high = float(image.min()), float(image.max())
    if min(image.shape) < 16 or high <= low:
        return False
    scaled = (image - low) / (high - low)
    return _has_row(scaled) or _has_row(1 - scaled)


def _has_row(lit: NDArray[np.float32]) -> bool:
    # The ink's grey is not known, and soft edges join letters at one level and thin strokes break at another. Folds of
    # a brain form a row of four at one level now and then (10 of 992 real slices), at two never.
    rows = 0
    for level in np.arange(0.95, 0.2, -0.05):
        labels, count = ndimage.label(lit >= level, structure=np.ones((3, 3)))
        if _LETTERS <= count <= 20_000 and _row_of(_letters(labels)):
            rows += 1
            if rows == 2:
                return True
    return False


def _letters(labels: NDArray[np.int32]) -> list[tuple[int, int, int, int]]:
    """Boxes (top, bottom, left, right) of the shapes that may be letters."""
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not _HEIGHTS[0] <= height <= _HEIGHTS[1] or width > 1.6 * height:
            continue
        filled = float((labels[rows, columns] == number).mean())
        # An I is a bar; every other letter leaves some of its box empty.
        if 0.12 <= filled <= 0.8 or width <= 0.35 * height:
            found.append((rows.start, rows.stop, columns.start, columns.stop))
    return found


def _row_of(boxes: list[tuple[int, int, int, int]]) -> bool:
    boxes = sorted(boxes, key=lambda box: box[2])
    longest = [1] * len(boxes)
    for place, (top, bottom, left, _) in enumerate(boxes):
        height = bottom - top
        for before in range(place - 1, max(-1, place - 60), -1):
            other_top, other_bottom, _, other_right = boxes[before]
            other = other_bottom - other_top
            level = abs(bottom - other_bottom) <= max(1, 0.15 * height)
            if level and abs(height - other) <= max(1, 0.35 * height) and -1 <= left - other_right <= 0.8 * height:
                longest[place] = max(longest[place], longest[before] + 1)
    return bool(longest) and max(longest) >= _LETTERS
