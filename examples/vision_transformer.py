"""A small vision transformer: studies/vit.yaml calls `vit`. docs/custom-networks.md explains what a study takes."""

import torch
from torch import Tensor, nn


class VisionTransformer(nn.Module):
    """Patches become tokens, pass through blocks of attention, and their mean is classified.

    Args:
        in_channels: of the images.
        space: height and width of the images, multiples of the patch.
        classes: outputs.
        width: numbers of a token.
        depth: blocks.
        heads: of the attention, a divisor of the width.
        patch: height and width of a patch.
    """

    def __init__(
        self, in_channels: int, space: tuple[int, int], classes: int, width: int, depth: int, heads: int, patch: int
    ):
        super().__init__()
        tokens = (space[0] // patch) * (space[1] // patch)
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        how = {
            "dim_feedforward": 2 * width,
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(width, heads, **how) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) → logits (n, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def vit(in_channels: int, space: tuple[int, int], classes: int, channels: list[int]) -> nn.Module:
    """A vision transformer with a block for each entry of `network.channels`, all of the first one's width."""
    return VisionTransformer(in_channels, space, classes, width=channels[0], depth=len(channels), heads=4, patch=2)
