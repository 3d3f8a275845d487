"""Image files: every mode that Pillow reads becomes red, green and blue of 8 bits, or is refused by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Of files that are read as images; of .gif, .webp and .tif the first frame."""
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Orientation in EXIF data → what turns the image upright, of PIL.Image.Transpose."""
READING = 2
"""Raised when the same file becomes other pixels than before, so that decoded images in a cache are made again."""


def read(path: str | Path):
    """An image file as a Pillow image in RGB, turned upright if its EXIF data say so; if these are damaged, as it is.

    16-bit grey is scaled to 8 bits, transparent pixels are laid over white, and all other modes are converted.

    Raises:
        ValueError: numbers whose range is not known (32-bit integers beyond 16 bits, floating point beyond [0, 1]).
        OSError, SyntaxError, PIL.Image.DecompressionBombError: as Pillow; not an image, damaged or too large.
    """
    from PIL import Image  # here, because Snakemake imports what calls this when it builds the DAG

    with Image.open(path) as opened:
        opened.load()
        image = _upright(opened)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _of_wide_numbers(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image):
    """An image turned as the orientation in its EXIF data says; its other EXIF data may be damaged."""
    from PIL import ExifTags, Image

    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises many kinds; the pixels are there all the same
        turn = None
    return image.copy() if turn is None else image.transpose(Image.Transpose[turn])


def _of_wide_numbers(image):
    """Grey of 16 or 32 bits, scaled to 8."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F":
        low, high, largest = float(values.min()), float(values.max()), 1.0
    else:
        low, high, largest = int(values.min()), int(values.max()), 65535
    if not 0 <= low <= high <= largest:  # also where a value is not a number
        raise ValueError(f"mode {image.mode}, values from {low:g} to {high:g}, of which white is not known")
    grey = np.round(values.astype(np.float64) * (255 / largest)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@dataclass
class Listing:
    """The image files in a folder.

    Attributes:
        paths: sorted by their names below the folder.
        left_out: suffix ("" of files without), or "broken links" → number of such files, which are no images.
    """

    paths: list[Path] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)

    def note(self) -> str:
        """What is left out, in words; "" if nothing is."""
        if not self.left_out:
            return ""
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in self.left_out.most_common(5))
        return f"{sum(self.left_out.values())} files are no images by their suffix and are left out ({kinds})"


def files_below(folder: Path, depth: int | None = None) -> Listing:
    """The image files in a folder and its subfolders; hidden ones do not count, links are followed, loops are not.

    Args:
        folder: where to look.
        depth: levels of folders to enter; None: all.
    """
    listing = Listing()
    for path in _walk(folder, depth, seen=()):
        suffix = path.suffix.lower() if path.exists() else "broken links"
        if suffix in SUFFIXES:
            listing.paths.append(path)
        else:
            listing.left_out[suffix] += 1
    listing.paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return listing


def _walk(folder: Path, depth: int | None, seen: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:  # a link to a folder that holds it
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name[0] == ".":
            continue
        if entry.is_dir():
            if depth is None or depth > 0:
                yield from _walk(Path(entry.path), None if depth is None else depth - 1, (*seen, real))
        elif entry.is_file() or entry.is_symlink():
            yield Path(entry.path)
