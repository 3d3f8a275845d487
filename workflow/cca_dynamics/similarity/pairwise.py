"""Distances between all pairs of representations, at the speed of the matrix products they need.

Each representation is decomposed once. For each, one product with the bases of many others gives their
cross-products, and the small eigenproblems that are left are solved many at a time: on a CPU one per thread, on a GPU
in batches. Both directions of an asymmetric measure come from the same decomposition.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cca_dynamics.files import DamagedFile, read_tensors, replacing, write_tensors
from cca_dynamics.provenance import code_fingerprint
from cca_dynamics.similarity.baselines import cosine, euclidean, linear_cka, linear_cka_debiased, procrustes
from cca_dynamics.similarity.cca import (
    Factors,
    bartlett,
    canonical,
    check_pair,
    correlations,
    factorize,
    mean_cca,
    projection_weights,
    pwcca,
    pwcca_squared,
    svcca,
)
from cca_dynamics.workers import Workers

MEASURES: dict[str, Callable] = {
    "pwcca": pwcca,
    "pwcca_squared": pwcca_squared,
    "mean_cca": mean_cca,
    "svcca": svcca,
    "bartlett": bartlett,
    "linear_cka": linear_cka,
    "linear_cka_debiased": linear_cka_debiased,
    "procrustes": procrustes,
    "cosine": cosine,
    "euclidean": euclidean,
}
"""Every measure takes (x, y, **options) and returns a result with `distance` and `reverse`. Adding one: a function
and its line here. Those in `KERNELS` are also computed from shared cross-products."""

MEMORY = 1e9  # bytes of bases in memory at once


def _stacked(tensors: list[Tensor]) -> Tensor:
    """The tensors on a new first axis; without that axis if there is one (single products are quicker than batches)."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)


def _weighted(kind: str) -> Callable:
    def kernel(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
        u, rho, v = canonical(cross)
        weights_x = projection_weights(u, x.coordinates(), kind)
        weights_y = projection_weights(v, _stacked([y.coordinates() for y in others]), kind)
        return tuple((1 - (weights * rho).sum(dim=-1)).clamp(0, 1) for weights in (weights_x, weights_y))

    return kernel


def _mean(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    distance = 1 - correlations(cross).mean(dim=-1)
    return distance, distance


def _cka(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    s = _stacked([y.s for y in others])
    hsic = (x.s[:, None] * cross * s[..., None, :]).square().sum(dim=(-1, -2))
    distance = (1 - hsic / (x.s.pow(4).sum() * s.pow(4).sum(dim=-1)).sqrt()).clamp(min=0)
    return distance, distance


def _nuclear(cross: Tensor, x: Factors, others: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    s = _stacked([y.s for y in others])
    nuclear = torch.linalg.svdvals(x.s[:, None] * cross * s[..., None, :]).sum(dim=-1)
    distance = (1 - nuclear / (x.s.square().sum() * s.square().sum(dim=-1)).sqrt()).clamp(min=0)
    return distance, distance


KERNELS: dict[str, Callable] = {
    "pwcca": _weighted("absolute"),
    "pwcca_squared": _weighted("squared"),
    "mean_cca": _mean,
    "svcca": _mean,
    "linear_cka": _cka,
    "procrustes": _nuclear,
}
"""Distances of one representation to several of one shape, both directions, from cross-products Q_xᵀ Q_y (b, p, q), or
to one from (p, q)."""

CANONICAL = ("pwcca", "pwcca_squared", "mean_cca", "svcca")


SVCCA_KEEPS = 0.99
"""Share of a layer's variance whose directions SVCCA compares, as its authors do."""


def compared(factors: Sequence[Factors], measure: str, keep: float = SVCCA_KEEPS) -> list[Factors]:
    """Layers as a measure compares them: for SVCCA without their weakest directions."""
    return [x.truncated(keep) for x in factors] if measure == "svcca" else list(factors)


def pairwise(
    representations: Sequence,
    measure: str = "pwcca",
    *,
    device: str = "cpu",
    block: int | None = None,
    precision: str = "float64",
    progress: bool = False,
    store: Path | None = None,
    **options: object,
) -> np.ndarray:
    """Distances between all pairs of representations.

    Args:
        representations: N arrays (n, d), widths may differ, or Factors to share between calls.
        measure: key of `MEASURES`.
        device: "cpu" (as many threads as torch.get_num_threads()) or "cuda".
        block: representations whose bases are in memory at once; default: as many as fit in 1 GB. Memory beyond the
            representations is about (block + 1)·n·d numbers of the precision, and block·d² in float64.
        precision: of the cross-products, "float64" or "float32". Decompositions are float64 either way; float32 is
            about twice as fast and moves distances by about 1e-6 (benchmarks/similarity.py prints by how much).
        progress: show a progress bar on stderr.
        store: a folder in which finished blocks are kept, so that a killed run goes on where it stopped; blocks of
            other data or options are ignored.
        options: of the measure, e.g. keep for svcca.

    Returns:
        (N, N) float64: D[i, j] is the distance from i to j, 0 on the diagonal, symmetric for symmetric measures.

    Raises:
        ValueError: no representations, an unknown measure, or what the measure refuses.

    Warns:
        DegenerateCCAWarning: once, if the ranks of a pair together exceed n - 1.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r} is not known; choose one of {', '.join(MEASURES)}")
    if precision not in ("float64", "float32"):
        raise ValueError(f"precision is float64 or float32, not {precision!r}")
    if block is not None and block < 1:
        raise ValueError(f"block is the number of representations in memory at once, at least 1, not {block}")
    if len(representations) == 0:
        raise ValueError("there are no representations to compare; give at least one")
    known = set(inspect.signature(MEASURES[measure]).parameters) - {"x", "y", "device", "variates"}
    for name in options:
        if name not in known:
            raise ValueError(f"{measure} has no option {name!r}; it has {', '.join(sorted(known)) or 'none'}")
    with Workers(device) as workers:
        named = [(x, device, f"representations[{i}]") for i, x in enumerate(representations)]
        factors = workers.run(lambda x, device, name: factorize(x, device=device, name=name), named)
        if measure == "svcca":
            factors = compared(factors, measure, options.pop("keep", SVCCA_KEEPS))
        _check(factors, measure)

        count, size = len(factors), max(x.n * max(x.rank, 1) for x in factors) * (8 if precision == "float64" else 4)
        block = block or int(max(1, min(count, MEMORY // size)))
        fingerprint = _fingerprint(factors, measure, precision, block, options) if store else ""
        distances = np.zeros((count, count))
        with tqdm(total=count * (count - 1) // 2, desc=measure, unit="pair", disable=not progress) as bar:
            for first in range(0, count, block):
                members = range(first, min(first + block, count))
                saved = Path(store) / f"{fingerprint}-{first}.safetensors" if store else None
                columns = _kept(saved, members)
                if columns is None:
                    columns = _columns(factors, measure, precision, options, members, device, workers, bar.update)
                    if saved is not None:
                        _keep(columns, saved)
                else:
                    bar.update(sum(members))
                for k, j in enumerate(members):
                    distances[:j, j], distances[j, :j] = columns[:, :j, k]
    return distances


def _columns(
    factors: list[Factors],
    measure: str,
    precision: str,
    options: dict,
    members: range,
    device: str,
    workers: Workers,
    report: Callable[[int], object],
) -> np.ndarray:
    """Distances between a block of representations and all before and within it.

    Returns:
        (2, members[-1] + 1, len(members)): [0, i, k] is the distance from i to members[k] for i < members[k], and
        [1, i, k] the distance back.
    """
    first, last = members[0], members[-1] + 1
    columns = np.zeros((2, last, len(members)))
    kernel = KERNELS.get(measure) if not options else None
    if kernel is None:

        def pair(i: int, j: int) -> None:
            found = MEASURES[measure](factors[i], factors[j], **options)
            columns[:, i, j - first] = found.distance, found.reverse

        workers.run(pair, [(i, j) for j in members for i in range(j)], lambda i, j: report(1))
        return columns

    # The bases of the block lie side by side: one product with another basis gives the cross-products with many.
    ends = np.cumsum([0, *(factors[j].rank for j in members)]).tolist()
    dtype = torch.float64 if precision == "float64" else torch.float32
    bases = torch.empty(factors[0].n, ends[-1], dtype=dtype, device=factors[0].x.device)

    def columns_of(start: int, stop: int) -> Tensor:
        return bases[:, ends[start - first] : ends[stop - first]]

    def fill(j: int) -> None:
        columns_of(j, j + 1).copy_(factors[j].basis())

    def solve(i: int, start: int, stop: int, q: Tensor) -> None:
        ranks = [factors[j].rank for j in range(start, stop)]
        crosses = (q.T @ columns_of(start, stop)).double().split(ranks, dim=1)
        for group in _alike(factors, range(start, stop), device):
            cross = _stacked([crosses[j - start] for j in group])
            if min(cross.shape[-2:]) == 0:  # a layer without directions
                found = np.ones((2, len(group)))
            else:
                found = torch.stack(kernel(cross, factors[i], [factors[j] for j in group])).cpu().numpy()
            columns[:, i, [j - first for j in group]] = found.reshape(2, -1)

    def row(i: int, q: Tensor) -> list[tuple]:
        together = 8 if device == "cpu" else 128
        starts = range(max(first, i + 1), last, together)
        return [(i, start, min(start + together, last), q) for start in starts]

    workers.run(fill, [(j,) for j in members])
    done = lambda i, start, stop, q: report(stop - start)  # noqa: E731
    workers.run(solve, [job for i in members for job in row(i, columns_of(i, i + 1))], done)
    for i in range(first):
        workers.run(solve, row(i, factors[i].basis().to(dtype)), done)
    return columns


def _alike(factors: list[Factors], members: range, device: str) -> list[list[int]]:
    """What to solve in one batch: on a GPU all of equal shape, on a CPU one at a time."""
    groups: dict[object, list[int]] = {}
    for j in members:
        shape = (factors[j].rank, factors[j].x.shape[1])
        groups.setdefault(j if device == "cpu" else shape, []).append(j)
    return list(groups.values())


def _check(factors: list[Factors], measure: str) -> None:
    """What `check_pair` says of each pair, the warning once; other measures need equal rows only."""
    for i, x in enumerate(factors):
        if x.n != factors[0].n:
            raise ValueError(
                f"representations[{i}] has {x.n} data points and representations[0] {factors[0].n}; "
                "compare activations of the same data points"
            )
    if measure in CANONICAL or measure == "bartlett":
        widest = sorted(range(len(factors)), key=lambda i: -factors[i].rank)[:2]
        if factors[widest[0]].rank >= factors[0].n - 1:
            raise ValueError(
                f"representations[{widest[0]}] spans all {factors[0].n - 1} directions of its data points, "
                "so that everything correlates with it perfectly; use more data points than neurons"
            )
        if len(widest) == 2:
            check_pair(factors[widest[0]], factors[widest[1]])


def _fingerprint(factors: list[Factors], measure: str, precision: str, block: int, options: dict) -> str:
    code = code_fingerprint("similarity.pairwise:pairwise", selected=[measure])
    digest = hashlib.sha256(repr((code, measure, precision, block, sorted(options.items()))).encode())
    for x in factors:
        digest.update(repr((tuple(x.x.shape), x.x.dtype)).encode())
        digest.update(x.s.cpu().numpy().tobytes() + x.mean.cpu().numpy().tobytes() + x.v.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(path: Path | None, members: range) -> np.ndarray | None:
    """The distances of a finished block, unless they are missing or damaged."""
    if path is None or not path.exists():
        return None
    try:
        columns = read_tensors(path, ["columns"])[0]["columns"].numpy()
    except DamagedFile:
        return None
    return columns if columns.shape == (2, members[-1] + 1, len(members)) else None


def _keep(columns: np.ndarray, path: Path) -> None:
    with replacing(path) as temporary:
        write_tensors(temporary, {"columns": torch.from_numpy(columns)})
