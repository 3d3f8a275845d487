"""Distances between all pairs of representations, at the speed of the matrix products they need.

Each representation is decomposed once. For each, one product with the bases of many others gives their
cross-products, and the small eigenproblems that are left are solved many at a time: on a CPU one per thread, on a GPU
in batches. Both directions of an asymmetric measure come from the same decomposition.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cca_dynamics.similarity.cca import check_pair
from cca_dynamics.similarity.errors import RepresentationError
from cca_dynamics.similarity.factors import Factors, check_origins, factorize
from cca_dynamics.similarity.kernels import stack
from cca_dynamics.similarity.measures import MEASURES, Measure
from cca_dynamics.similarity.threads import Workers

MEMORY = 1e9
"""Bytes of bases in memory at once, unless a caller chooses the size of a block."""

TILE = 4
"""Representations whose bases are multiplied with those of as many others in one product on a CPU. Two of eight would
read more of them from memory for each pair: numbers in benchmarks/README.md."""
WIDEST_TILE = 2048
"""The most neurons of such representations together."""

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
"""Numbers in which cross-products may be computed."""


class BlockCache(Protocol):
    """Where finished blocks of a comparison are kept, so that a killed one can resume."""

    def load(self, key: str) -> np.ndarray | None:
        """The block that was saved under a key, or None."""

    def save(self, key: str, block: np.ndarray) -> None:
        """Keep a finished block, float64.

        Args:
            key: a name for it, letters, digits and hyphens; it differs with the representations, the measure and its
                options, but not with the code that computes it.
            block: see `pairwise`.
        """


def pairwise(
    representations: Iterable,
    measure: str = "pwcca",
    *,
    device: str = "cpu",
    block: int | None = None,
    precision: str = "float64",
    cache: BlockCache | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: object,
) -> np.ndarray:
    """Distances between all pairs of representations.

    Args:
        representations: N arrays (n, d), widths may differ, or Factors to share between calls.
        measure: key of `MEASURES`.
        device: "cpu" (as many threads as torch.get_num_threads()) or "cuda".
        block: representations whose bases are in memory at once; default: as many as fit in 1 GB. Memory beyond the
            representations is about (1.25 block + 1)·n·d numbers of the precision, and block·d² in float64.
        precision: of the cross-products, "float64" or "float32". Decompositions are float64 either way; float32 is
            about twice as fast and moves distances by about 1e-6 (benchmarks/similarity.py prints by how much).
        cache: keeps finished blocks, so that a killed run resumes from them; blocks of other data or options are
            ignored.
        progress: called with the number of pairs just done and the number of all pairs, N(N - 1) / 2.
        options: of the measure, e.g. keep for svcca.

    Returns:
        (N, N) float64: D[i, j] is the distance from i to j, 0 on the diagonal, symmetric for symmetric measures.

    Raises:
        RepresentationError: no representations, or what the measure refuses.
        ValueError: the measure, the precision, the block or an option is not known.

    Warns:
        DegenerateCCAWarning: once, if the ranks of a pair together exceed n - 1.
    """
    _check_arguments(measure, precision, block, options)
    representations = as_list(representations)
    if len(representations) == 0:
        raise RepresentationError("there are no representations to compare; give at least one")
    record, count = MEASURES[measure], len(representations)
    pairs = count * (count - 1) // 2

    def report(done: int) -> None:
        if progress is not None:
            progress(done, pairs)

    shapes = [x.x.shape if isinstance(x, Factors) else getattr(x, "shape", ()) for x in representations]
    numbers = sum(int(np.prod(shape)) for shape in shapes)
    with Workers(device, numbers) as workers:
        named = [(x, f"representations[{i}]") for i, x in enumerate(representations)]
        factors = workers.run(lambda x, name: factorize(x, device=device, name=name), named)
        if record.keep is not None:
            factors = record.compared(factors, options.pop("keep", record.keep))
        _check_representations(factors, record)
        if block is None:
            largest_basis = max(x.x.shape[0] * max(x.rank, 1) for x in factors) * PRECISIONS[precision].itemsize
            block = int(max(1, min(count, MEMORY // largest_basis)))
        comparison = "" if cache is None else _digest(factors, measure, precision, block, options)
        distances = np.zeros((count, count))
        for first in range(0, count, block):
            indices = range(first, min(first + block, count))
            key = f"{comparison}-{first}"
            columns = None if cache is None else cache.load(key)
            if columns is not None and columns.shape == (2, indices[-1] + 1, len(indices)):
                report(sum(indices))
            else:
                columns = _compare_block(factors, record, precision, options, indices, device, workers, report)
                if cache is not None:
                    cache.save(key, columns)
            for k, j in enumerate(indices):
                distances[:j, j], distances[j, :j] = columns[:, :j, k]
    return distances


def _compare_block(
    factors: list[Factors],
    measure: Measure,
    precision: str,
    options: dict,
    indices: range,
    device: str,
    workers: Workers,
    report: Callable[[int], None],
) -> np.ndarray:
    """Distances between a block of representations and all before and within it.

    Returns:
        (2, indices[-1] + 1, len(indices)): [0, i, k] is the distance from i to indices[k] for i < indices[k], and
        [1, i, k] the distance back.
    """
    if measure.kernel is None or options:  # kernels know no options
        return _compare_one_by_one(factors, measure, options, indices, workers, report)
    first, end = indices[0], indices[-1] + 1
    columns = np.zeros((2, end, len(indices)))
    # The bases of the block lie below each other, transposed: one product gives the cross-products of several with
    # several others, and what it adds up is contiguous in memory.
    edges = np.cumsum([0, *(factors[j].rank for j in indices)]).tolist()
    dtype = PRECISIONS[precision]
    bases = torch.empty(edges[-1], factors[0].x.shape[0], dtype=dtype, device=factors[0].x.device)

    def bases_of(some: range) -> Tensor:
        return bases[edges[some.start - first] : edges[some.stop - first]]

    def write_basis(j: int) -> None:
        bases_of(range(j, j + 1)).copy_(factors[j].basis().T)

    def solve(some: range, others: range, q: Tensor) -> None:
        """Fill in the distances between some, whose transposed bases are q, and others after them in the block."""
        crosses = (bases_of(others) @ q.T).double().split([factors[j].rank for j in others])
        for place, i in enumerate(some):
            start = sum(factors[k].rank for k in some[:place])
            for batch in _batches_of_equal_shape(factors, others, device):
                cross = stack([crosses[j - others.start][:, start : start + factors[i].rank].T for j in batch])
                if min(cross.shape[-2:]) == 0:  # a layer without directions is unlike any other
                    both_ways = np.full((2, len(batch)), measure.to_constant)
                else:
                    distances = measure.kernel(cross, factors[i], [factors[j] for j in batch])
                    both_ways = torch.stack(distances).cpu().numpy()
                columns[:, i, [j - first for j in batch]] = both_ways.reshape(2, -1)

    def report_solved(some: range, others: range, q: Tensor) -> None:
        report(len(some) * len(others))

    widest = max(1, *(x.rank for x in factors))
    at_once = max(1, min(TILE, WIDEST_TILE // widest))
    some_at_once, others_at_once = (at_once, at_once) if device == "cpu" else (1, 128)
    workers.run(write_basis, [(j,) for j in indices])
    within = _tiles(range(first, end), some_at_once, others_at_once)
    workers.run(solve, [(some, others, bases_of(some)) for some, others in within], report_solved)
    for some in _parts(range(first), min(some_at_once, max(1, len(indices) // TILE))):  # their bases take memory, too
        q = torch.cat([factors[i].basis().T.to(dtype) for i in some])
        workers.run(solve, [(some, others, q) for others in _parts(indices, others_at_once)], report_solved)
    return columns


def _parts(indices: range, size: int) -> list[range]:
    """Consecutive indices, so many at a time."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _tiles(indices: range, some: int, others: int) -> list[tuple[range, range]]:
    """All pairs i < j of indices as products of up to `some` i and `others` j, without a pair that is not needed."""
    tiles = []
    for part in _parts(indices, some):
        tiles += [(range(i, i + 1), range(i + 1, part.stop)) for i in part[:-1]]
        tiles += [(part, other) for other in _parts(range(part.stop, indices.stop), others)]
    return tiles


def _compare_one_by_one(
    factors: list[Factors],
    measure: Measure,
    options: dict,
    indices: range,
    workers: Workers,
    report: Callable[[int], None],
) -> np.ndarray:
    """As `_compare_block`, by the measure's function."""
    columns = np.zeros((2, indices[-1] + 1, len(indices)))

    def compare_pair(i: int, j: int) -> None:
        result = measure.function(factors[i], factors[j], **options)
        columns[:, i, j - indices[0]] = result.distance, result.reverse

    workers.run(compare_pair, [(i, j) for j in indices for i in range(j)], lambda i, j: report(1))
    return columns


def _batches_of_equal_shape(factors: list[Factors], indices: range, device: str) -> list[list[int]]:
    """Which representations to solve in one batch: on a GPU all of equal shape, on a CPU one at a time."""
    batches: dict[object, list[int]] = {}
    for j in indices:
        shape = (factors[j].rank, factors[j].x.shape[1])
        batches.setdefault(j if device == "cpu" else shape, []).append(j)
    return list(batches.values())


def as_list(representations) -> list:
    """The representations of any iterable but a dict.

    Raises:
        RepresentationError: it is none.
    """
    if isinstance(representations, Mapping):
        raise RepresentationError("the representations are a dict; give list(representations.values())")
    if not isinstance(representations, Iterable):
        kind = type(representations).__name__
        raise RepresentationError(f"the representations are of type {kind}; give a list of them")
    return list(representations)


def _check_arguments(measure: str, precision: str, block: int | None, options: dict) -> None:
    """Refuse what the caller has mistyped."""
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r} is not known; choose one of {', '.join(MEASURES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is float64 or float32, not {precision!r}")
    if block is not None and block < 1:
        raise ValueError(f"block is the number of representations in memory at once, at least 1, not {block}")
    known = set(inspect.signature(MEASURES[measure].function).parameters) - {"x", "y", "device", "variates"}
    for name in options:
        if name not in known:
            raise ValueError(f"{measure} has no option {name!r}; it has {', '.join(sorted(known)) or 'none'}")


def _check_representations(factors: list[Factors], measure: Measure) -> None:
    """Refuse unequal rows and, for the CCA family, what `check_pair` refuses; warn once, of the widest pair."""
    for i, x in enumerate(factors):
        if x.n != factors[0].n:
            raise RepresentationError(
                f"representations[{i}] has {x.n} data points and representations[0] {factors[0].n}; "
                "compare activations of the same data points"
            )
        check_origins(x, factors[0])
    if not measure.canonical:
        return
    widest = sorted(range(len(factors)), key=lambda i: -factors[i].rank)[:2]
    if factors[widest[0]].rank >= factors[0].n - 1:
        raise RepresentationError(
            f"representations[{widest[0]}] spans all {factors[0].n - 1} directions of its data points, "
            "so that everything correlates with it perfectly; use more data points than neurons"
        )
    if len(widest) == 2:
        check_pair(factors[widest[0]], factors[widest[1]])


def _digest(factors: list[Factors], measure: str, precision: str, block: int, options: dict) -> str:
    """16 hexadecimal digits that differ with the data, the measure and the options."""
    digest = hashlib.sha256(repr((measure, precision, block, sorted(options.items()))).encode())
    for x in factors:
        digest.update(repr((tuple(x.x.shape), x.x.dtype)).encode())
        digest.update(x.s.cpu().numpy().tobytes() + x.mean.cpu().numpy().tobytes() + x.v.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
