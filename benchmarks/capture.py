"""Does `cca-dynamics capture` run at the network's own speed, and in how much memory?

Side by side, on the same images and threads, in turns:

- capture: decoding, forward passes, four layers kept;
- bare: the same batches, decoded beforehand, through the same network without hooks.

    python benchmarks/capture.py [--images 2000] [--size 64]     a few minutes on 2 cores
    python benchmarks/capture.py --memory 50000                  peak memory of so many images of 32 × 32
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cca_dynamics.compare import capture, inputs
from cca_dynamics.compare.outputs import Reading
from cca_dynamics.runtime.machine import hardware
from PIL import Image

LAYERS = ["layer1", "layer2", "layer3", "layer4"]
BATCH = 64


def make_images(folder: Path, count: int, size: int) -> None:
    """Smooth random pictures as .png files."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.png")


def captured(network, source: inputs.Source, out: Path) -> float:
    start = time.perf_counter()
    capture.store(network, source, LAYERS, out, reading=Reading(), batch=BATCH, facts={"model": "resnet18"})
    return time.perf_counter() - start


def bare(network, batches: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, help="measure the peak memory of so many images instead")
    chosen = parser.parse_args()
    print(f"{hardware()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        count, size = (chosen.memory, 32) if chosen.memory else (chosen.images, chosen.size)
        make_images(folder, count, size)
        source = inputs.images(folder, None, inputs.Pixels(size))
        network = capture.build(capture.Origin("resnet18"))
        if chosen.memory:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            seconds = captured(network, source, Path(name) / "a.safetensors")
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            what = f"{count:,} images of {size} × {size}"
            print(f"{what}: {seconds:.0f} s, peak {peak / 1e6:.2f} GB, before it {before / 1e6:.2f} GB")
            return
        batches = list(source.batches(BATCH))
        seconds: dict[str, list[float]] = {"capture": [], "bare": []}
        for _ in range(chosen.rounds):
            seconds["bare"].append(bare(network, batches))
            seconds["capture"].append(captured(network, source, Path(name) / "a.safetensors"))
        both = {key: statistics.median(values) for key, values in seconds.items()}
        print(
            f"resnet18 on {count:,} images of {size} × {size}: capture {both['capture']:.1f} s, bare loop "
            f"{both['bare']:.1f} s, ratio {both['capture'] / both['bare']:.2f}"
        )


if __name__ == "__main__":
    main()
