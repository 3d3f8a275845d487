"""How fast are PWCCA distances between all pairs, and what is the limit?

Side by side, on the same arrays and threads, in turns:

- ours: `cca_dynamics.similarity.pairwise`, in float64 and with float32 products, both directions of each pair;
- products: nothing but Q_iᵀ Q_j of all pairs i < j, float64, which any exact method needs, one product a pair;
- bound: the same numbers by fewer, wider products, the best this machine can do;
- factors: each layer decomposed once, which all its comparisons share;
- eigen: nothing but an eigenproblem of the layers' width for each pair, by LAPACK, one per thread at a time: the
  canonical directions, whose weights PWCCA needs, have no quicker exact route;
- textbook: each pair on its own, covariances of the stacked layers, pseudo-inverses, their square roots, and
  orthonormalised directions, as the authors' reference code does (but centred), timed on a few pairs and scaled to
  all: both directions, the same result as ours, and one direction only;
- repsim: the PWCCA of that package (C++), if it is installed, likewise.

    python benchmarks/similarity.py                 the table and the figure, about 15 minutes on 2 cores
    python benchmarks/similarity.py --quick         d = 64 and 128 only, about 2 minutes
    python benchmarks/similarity.py --growth        how time grows with networks, data points and neurons
    python benchmarks/similarity.py --inference     permutations and streaming beside the distances alone; one round,
                                                    4 minutes on 2 slow cores
    python benchmarks/similarity.py --large         memory of 200 networks × 512 neurons × 10,000 data points; about
                                                    half an hour on 2 cores, or --blocks 2 for its first blocks
    python benchmarks/similarity.py --device cuda   on a GPU; --large then compares 200 × 256 × 10,000
    python benchmarks/similarity.py --eigen         where the eigenproblems of a GPU's pairs are solved best: 1 minute

Results go to benchmarks/out/.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cca_dynamics.runtime.machine import hardware
from cca_dynamics.similarity import Moments, factorize, pairwise, pairwise_permutation_test, pwcca
from cca_dynamics.similarity.decompositions import eigh
from cca_dynamics.similarity.threads import Workers

OUT = Path(__file__).parent / "out"
SAMPLED = 5  # pairs on which slow methods are timed


def representations(count: int, n: int, d: int, seed: int = 0) -> list[np.ndarray]:
    """Layers that share half of their directions, float32, as networks give them."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, d // 2)).astype(np.float32)
    mixing = rng.normal(size=(count, d // 2, d)).astype(np.float32)
    return [shared @ mixing[i] + 3 * rng.standard_normal(size=(n, d), dtype=np.float32) for i in range(count)]


def textbook(x: np.ndarray, y: np.ndarray, both: bool = True, epsilon: float = 1e-10) -> list[float]:
    """PWCCA distance from x to y, and back if `both`, by the textbook: Σ_xx^(-1/2) Σ_xy Σ_yy^(-1/2)."""
    p = x.shape[1]
    covariance = np.cov(x.T.astype(np.float64), y.T.astype(np.float64))
    xx, xy, yy = covariance[:p, :p], covariance[:p, p:], covariance[p:, p:]
    roots = [_square_root(np.linalg.pinv(own + epsilon * np.eye(len(own)))) for own in (xx, yy)]
    u, rho, vt = np.linalg.svd(roots[0] @ xy @ roots[1])
    distances = []
    for layer, root, directions in [(x, roots[0], u), (y, roots[1], vt.T)][: 1 + both]:
        centred = layer.astype(np.float64) - layer.mean(axis=0, dtype=np.float64)
        variates, _ = np.linalg.qr(centred @ (root @ directions[:, : len(rho)]))
        weights = np.abs(variates.T @ centred).sum(axis=1)
        distances.append(1 - weights @ rho / weights.sum())
    return distances


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.abs(values))) @ vectors.T


def products(bases: torch.Tensor, d: int) -> None:
    """Q_iᵀ Q_j of all pairs, one by one."""
    bases = bases.split(d, dim=1)
    for i, q in enumerate(bases):
        for other in bases[i + 1 :]:
            q.T @ other


def bound(bases: torch.Tensor, d: int) -> None:
    """The same numbers, all of one row in one product."""
    for start in range(0, bases.shape[1] - d, d):
        bases[:, start : start + d].T @ bases[:, start + d :]


def factors(layers: list[np.ndarray], device: str) -> None:
    """Each layer decomposed, as many at a time as there are threads."""
    with Workers(device, sum(layer.size for layer in layers)) as workers:
        workers.run(lambda layer: factorize(layer, device=device), [(layer,) for layer in layers])


def eigenproblems(bases: torch.Tensor, d: int, pairs: int, device: str) -> None:
    """The eigenproblem of a pair, as often as there are pairs; on a GPU in batches, as `pairwise` solves them."""
    cross = bases[:, :d].T @ bases[:, d : 2 * d]
    square = cross @ cross.T
    if device == "cuda":
        for start in range(0, pairs, 128):
            eigh(square.expand(min(128, pairs - start), d, d))
        return
    with Workers(device, bases.numel()) as workers:
        workers.run(eigh, [(square,)] * pairs)


def timed(function, device: str) -> float:
    gc.collect()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(count: int, n: int, d: int, *, device: str, rounds: int, others: bool = True) -> dict:
    """Median seconds of each method over interleaved rounds, and the errors of ours."""
    layers = representations(count, n, d)
    pairs = count * (count - 1) // 2
    rng = np.random.default_rng(1)
    sampled = [tuple(rng.choice(count, size=2, replace=False)) for _ in range(min(SAMPLED, pairs))]
    bases = torch.cat([factorize(layer, device=device).basis() for layer in layers], dim=1)
    seconds: dict[str, list[float]] = {}

    def record(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    timed(lambda: pairwise(layers[:2], device=device), device)  # warm up
    found: dict[str, np.ndarray] = {}

    def ours(precision: str) -> None:
        found[precision] = pairwise(layers, device=device, precision=precision)

    for _ in range(rounds if d < 512 else 1):
        record("products", timed(lambda: products(bases, d), device))
        record("bound", timed(lambda: bound(bases, d), device))
        record("factors", timed(lambda: factors(layers, device), device))
        record("eigen", timed(lambda: eigenproblems(bases, d, pairs, device), device))
        record("float64", timed(lambda: ours("float64"), device))
        record("float32", timed(lambda: ours("float32"), device))
        if others:
            for name, both in (("textbook", True), ("textbook_one", False)):
                each = [timed(lambda i=i, j=j: textbook(layers[i], layers[j], both), device) for i, j in sampled]  # noqa: B023
                record(name, statistics.median(each) * pairs)
    if others and (repsim := _repsim()) and d <= 64:
        i, j = sampled[0]
        record("repsim", timed(lambda: repsim(layers[i].astype(float), layers[j].astype(float)), device) * pairs)
    exact = found["float64"]
    row = {"networks": count, "n": n, "d": d, **{name: statistics.median(values) for name, values in seconds.items()}}
    for name in ("products", "bound"):
        row[f"gflops_{name}"] = 2 * pairs * n * d * d / row[name] / 1e9
    row["error_float32"] = float(np.abs(exact - found["float32"]).max())
    if others:
        both = [(exact[i, j], exact[j, i]) for i, j in sampled]
        expected = [textbook(layers[i], layers[j]) for i, j in sampled]
        row["error_textbook"] = float(np.abs(np.subtract(both, expected)).max())
    return row


def _repsim():
    try:
        import repsim
    except ImportError:
        return None
    return lambda x, y: repsim.pwcca([x, y])


def shown(rows: list[dict]) -> str:
    """The table that the README quotes: seconds, and ratios to the products and to the textbook."""
    lines = []
    for row in rows:
        line = {
            "networks": f"{row['networks']}",
            "n": f"{row['n']:,}",
            "d": f"{row['d']}",
            "products": f"{row['products']:.2f} s ({row['gflops_products']:.0f} GFLOP/s)",
            "bound": f"{row['bound']:.2f} s ({row['gflops_bound']:.0f})",
            "float64": f"{row['float64']:.2f} s",
            "/ products": f"{row['float64'] / row['products']:.2f}",
            "/ bound": f"{row['float64'] / row['bound']:.2f}",
            "factors": f"{row['factors']:.2f} s",
            "eigen": f"{row['eigen']:.2f} s",
            "/ (bound + factors + eigen)": f"{row['float64'] / (row['bound'] + row['factors'] + row['eigen']):.2f}",
            "float32": f"{row['float32']:.2f} s",
        }
        if "textbook" in row:
            line |= {
                "textbook (one direction)": f"{row['textbook']:.1f} s ({row['textbook_one']:.1f} s)",
                "textbook / float64": f"{row['textbook'] / row['float64']:.1f}",
                "textbook / float32": f"{row['textbook'] / row['float32']:.1f}",
            }
        if "repsim" in row:
            line["repsim / float64"] = f"{row['repsim'] / row['float64']:.0f}"
        line["error of float32"] = f"{row['error_float32']:.0e}"
        lines.append(line)
    table = pd.DataFrame(lines).fillna("")
    rows_as_text = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows_as_text)


def growth(device: str, rounds: int) -> list[dict]:
    """Time against one size at a time, the others fixed at 20 networks, 10,000 data points and 128 neurons."""
    sizes = {"networks": [5, 10, 20, 40], "n": [2500, 5000, 10_000, 20_000], "d": [32, 64, 128, 256]}
    base = {"networks": 20, "n": 10_000, "d": 128}
    rows = []
    for axis, values in sizes.items():
        for value in values:
            size = base | {axis: value}
            row = compare(size["networks"], size["n"], size["d"], device=device, rounds=rounds, others=False)
            rows.append({"axis": axis, **row})
            print(f"{axis} = {value}: {row['float64']:.2f} s, bound {row['bound']:.2f} s", flush=True)
        mine = pd.DataFrame([row for row in rows if row["axis"] == axis])
        slope = np.polyfit(np.log(mine[axis]), np.log(mine["float64"]), 1)[0]
        print(f"time grows as {axis}^{slope:.2f}")
    return rows


class Enough(Exception):
    """As many blocks as asked for are done."""


class CountedBlocks:
    """A `similarity.BlockCache` that stores nothing, says when a block is done, and stops after so many."""

    def __init__(self, stop_after: int | None):
        self.stop_after = stop_after
        self.done = 0

    def load(self, key: str) -> None:
        """No block was saved."""

    def save(self, key: str, block: np.ndarray) -> None:
        """Count a finished block."""
        self.done += 1
        print(f"block {self.done} done", flush=True)
        if self.done == self.stop_after:
            raise Enough


def large(device: str, blocks: int | None) -> None:
    """Peak memory and time of the biggest comparison that is promised; after the second block all are alike."""
    count, n, d = 200, 10_000, 512 if device == "cpu" else 256
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layers = representations(count, n, d)
    inputs = sum(layer.nbytes for layer in layers) / 1e9
    seconds = math.nan
    with contextlib.suppress(Enough):
        seconds = timed(lambda: pairwise(layers, device=device, cache=CountedBlocks(blocks)), device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"{count} networks × {d} neurons × {n:,} data points: {seconds:.0f} s, peak memory {peak:.2f} GB, "
        f"of which inputs {inputs:.2f} GB and Python with PyTorch {before * 1024 / 1e9:.2f} GB"
    )
    if device == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


def inference(device: str, rounds: int) -> None:
    """What a permutation of 40 networks costs beside their distances, and streaming beside all data at once."""
    count, n, d, permutations = 40, 10_000, 128, 20
    layers = representations(count, n, d)
    factors = [factorize(layer, device=device) for layer in layers]
    how = {"permutations": permutations, "device": device}
    seconds: dict[str, list[float]] = {}

    def record(name: str, function) -> None:
        seconds.setdefault(name, []).append(timed(function, device))

    def stream() -> float:
        moments = Moments(device)
        for start in range(0, n, 256):
            moments.update(*(layer[start : start + 256] for layer in layers[:2]))
        return moments.distance()

    for _ in range(rounds):
        record("distances", lambda: pairwise(factors, device=device))
        record("permuted", lambda: pairwise_permutation_test(factors, **how))
        record("whole", lambda: pwcca(*layers[:2], device=device))
        record("streamed", stream)
    each = {name: statistics.median(values) for name, values in seconds.items()}
    permutation = (each["permuted"] - each["distances"]) / permutations
    print(
        f"{count} networks × {d} neurons × {n:,} data points: distances {each['distances']:.2f} s from factors, one "
        f"permutation {permutation:.2f} s ({permutation / each['distances']:.2f} of them), 200 permutations "
        f"{200 * permutation / 60:.1f} min\n"
        f"one pair: all data {1e3 * each['whole']:.0f} ms, batches of 256 {1e3 * each['streamed']:.0f} ms "
        f"({each['streamed'] / each['whole']:.2f}), distance off by {abs(stream() - pwcca(*layers[:2]).distance):.0e}"
    )


def eigen(batch: int = 128) -> None:
    """Small decompositions, many at once, on the GPU, and on the threads of the CPU beside it, copies included."""
    rows = []
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for d in (16, 32, 64, 100, 128, 192, 256, 512):
            matrices = torch.randn(batch, d, d, dtype=torch.float64, device="cuda") / d**0.5
            row = {"matrices": batch, "d": d}
            for name, decompose, x in (
                ("eigh", torch.linalg.eigh, matrices @ matrices.mT),
                ("svdvals", torch.linalg.svdvals, matrices),
            ):

                def on_cpu(decompose=decompose, x=x) -> None:
                    parts = [each if isinstance(each, tuple) else (each,) for each in pool.map(decompose, x.cpu())]
                    for part in zip(*parts, strict=True):
                        torch.stack(part).cuda()

                for place, way in (("GPU", lambda decompose=decompose, x=x: decompose(x)), ("CPU", on_cpu)):
                    timed(way, "cuda")
                    seconds = statistics.median(timed(way, "cuda") for _ in range(3))
                    row[f"{name} on {place}, ms each"] = 1e3 * seconds / batch
            rows.append(row)
    print(pd.DataFrame(rows).to_string(index=False))
    pd.DataFrame(rows).to_csv(OUT / "similarity-eigen-cuda.csv", index=False)


def draw(rows: list[dict], path: Path) -> None:
    """Times against the size that varies, with the products as the limit."""
    import matplotlib.pyplot as plt
    from cca_dynamics.results.figures import BLUE, GREEN, ORANGE

    names = {
        "textbook": "textbook, pair by pair",
        "float64": "pairwise, float64",
        "float32": "pairwise, float32 products",
        "bound": "bound: products alone, float64",
    }
    style = {"textbook": "s:", "float64": "o-", "float32": "^-", "bound": "--"}
    colours = {"textbook": ORANGE, "float64": BLUE, "float32": GREEN, "bound": "black"}
    table = pd.DataFrame(rows)
    panels = list(table.groupby("axis", sort=False)) if "axis" in table else list(table.groupby("networks"))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), layout="constrained", squeeze=False)
    labels = {"networks": "Networks", "n": "Data points", "d": "Neurons per layer"}
    for axis, (key, group) in zip(axes[0], panels, strict=True):
        across = key if "axis" in table else "d"
        for name in [name for name in names if name in group]:
            axis.loglog(group[across], group[name], style[name], color=colours[name], label=names[name], markersize=4)
        axis.set(xlabel=labels[across], ylabel="Seconds (median)", title="" if "axis" in table else f"{key} networks")
        axis.set_xticks(group[across], [f"{value:,}" for value in group[across]])
        axis.minorticks_off()
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=200)
    plt.close(figure)


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else hardware()
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--networks", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--neurons", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="64 and 128 neurons only")
    parser.add_argument("--growth", action="store_true", help="time against each size")
    parser.add_argument("--large", action="store_true", help="memory of the largest comparison")
    parser.add_argument("--inference", action="store_true", help="permutations and streaming")
    parser.add_argument("--eigen", action="store_true", help="eigenproblems on a GPU and on the CPU beside it")
    parser.add_argument("--blocks", type=int, help="stop --large after so many blocks")
    chosen = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    print(machine(chosen.device))
    if chosen.large:
        large(chosen.device, chosen.blocks)
        return
    if chosen.eigen:
        eigen()
        return
    if chosen.inference:
        inference(chosen.device, rounds=1)
        return
    if chosen.growth:
        rows, name = growth(chosen.device, chosen.rounds), f"similarity-growth-{chosen.device}"
    else:
        rows, name = [], f"similarity-{chosen.device}"
        for count in chosen.networks:
            for d in [64, 128] if chosen.quick else chosen.neurons:
                rows.append(compare(count, chosen.points, d, device=chosen.device, rounds=chosen.rounds))
                print(shown(rows[-1:]).splitlines()[-1], flush=True)
                pd.DataFrame(rows).to_csv(OUT / f"{name}.csv", index=False)
        print("\n" + shown(rows))
    pd.DataFrame(rows).to_csv(OUT / f"{name}.csv", index=False)
    draw(rows, OUT / f"{name}.png")
    print(f"{OUT / name}.csv and .png")


if __name__ == "__main__":
    main()
