"""A network of your own: studies/custom.yaml calls `small`. docs/custom-networks.md explains what it takes."""

from torch import nn


def small(in_channels: int, classes: int, channels: list[int]) -> nn.Module:
    """Convolutions conv1, conv2, ... of which every second one halves the image; the mean over space; a linear head.

    Args:
        in_channels: of the images.
        classes: outputs.
        channels: of each convolution, `network.channels` in the config.
    """
    network, inputs = nn.Sequential(), in_channels
    for i, outputs in enumerate(channels, start=1):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2 - i % 2, padding=1, bias=False)
        network.add_module(f"conv{i}", nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.GELU()))
        inputs = outputs
    network.add_module("mean", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    network.add_module("head", nn.Linear(inputs, classes))
    return network
