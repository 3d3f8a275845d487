"""The random numbers of training and of what follows it.

Each is drawn from a generator of its own, seeded by (seed, cohort, network, purpose, epoch), never from one generator
that runs on. So a network is the same whichever part of its cohort a job trains, and wherever a job resumes.
"""

from __future__ import annotations

import zlib

import numpy as np

# Purposes for which a network draws random numbers, one constant each: a new one changes no other's fingerprint.
WEIGHTS = 0
ORDER = 1
"""Of the training examples."""
ABLATION = 2
"""Which feature maps are ablated first."""
AUGMENTATION = 3
MASKS = 4
"""Of dropout."""
WINDOWS = 5
"""Lengths of windows of text."""


def generator(seed: int, cohort: str, network: int, purpose: int, *epoch: int) -> np.random.Generator:
    """The generator of one network's random numbers for one purpose (in one epoch).

    Args:
        seed: the study's.
        cohort: its name.
        network: index of the network in its cohort.
        purpose: one of the constants of this module.
        epoch: for what is drawn anew in each epoch.
    """
    return np.random.default_rng([seed, zlib.crc32(cohort.encode()), network, purpose, *epoch])
