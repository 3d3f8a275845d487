"""Finished blocks of a comparison in a folder: a killed `compute` resumes from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cca_dynamics.errors import DamagedFile
from cca_dynamics.runtime.fingerprints import code_fingerprint
from cca_dynamics.runtime.storage import read_tensors, replacing, write_tensors


class BlocksInFolder:
    """A `similarity.BlockCache` of one safetensors file per block.

    Blocks that were computed by other code are not used, and neither are damaged ones.

    Args:
        folder: created when the first block is saved.
        measure: key of `similarity.MEASURES` with which the distances are computed.
    """

    def __init__(self, folder: Path, measure: str):
        self.folder = folder
        self.code = code_fingerprint("similarity.pairwise:pairwise", selected=[f"similarity.measures:{measure}"])

    def load(self, key: str) -> np.ndarray | None:
        """The block that was saved under a key; None if it is missing or damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            tensors, _ = read_tensors(path, ["block"])
        except DamagedFile:
            return None
        return tensors["block"].numpy()

    def save(self, key: str, block: np.ndarray) -> None:
        """Write a block, whole or not at all."""
        import torch  # late: the workflow imports this module whenever it plans

        with replacing(self._path(key)) as temporary:
            write_tensors(temporary, {"block": torch.from_numpy(block)})

    def _path(self, key: str) -> Path:
        return self.folder / f"{self.code}-{key}.safetensors"
