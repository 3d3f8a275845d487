"""Augmentation: how training images are changed, drawn anew in each epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SHIFT = 4
"""The furthest that an image is shifted, in pixels."""


def draw_changes(generator: np.random.Generator, images: int) -> np.ndarray:
    """Draw how each image is changed in one epoch.

    Returns:
        (images, 3): whether it is flipped (0 or 1), and by how many pixels it is shifted down and to the right.
    """
    shifts = generator.integers(-SHIFT, SHIFT, size=(images, 2), endpoint=True)
    return np.concatenate([generator.integers(0, 2, size=(images, 1)), shifts], axis=1)


def flip_and_shift(images: Tensor, changes: Tensor) -> Tensor:
    """Mirror half of the images left to right and shift each by up to `SHIFT` pixels; zeros fill the border.

    Args:
        images: (N, batch, height, width, channels).
        changes: (N, batch, 3), see `draw_changes`.

    Source: He et al. 2016, section 4.2.
    """
    networks, batch, height, width, _ = images.shape
    flipped, down, right = (part[..., None] for part in changes.unbind(-1))
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows = rows - down + SHIFT  # (N, batch, height), into the padded image
    columns = torch.where(flipped.bool(), width - 1 - columns, columns) - right + SHIFT
    padded = functional.pad(images, (0, 0, SHIFT, SHIFT, SHIFT, SHIFT))
    first = torch.arange(networks, device=images.device).view(-1, 1, 1, 1)
    second = torch.arange(batch, device=images.device).view(-1, 1, 1)
    return padded[first, second, rows[..., None], columns[..., None, :]]


AUGMENTATIONS = {"none": None, "flip_and_shift": flip_and_shift}
"""(images, changes) → images. Adding one: its function, which uses the changes of `draw_changes`, and one line here."""
