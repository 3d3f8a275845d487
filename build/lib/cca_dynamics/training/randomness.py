"""The random numbers of training and of what follows it.

Each is drawn from a generator of its own, seeded by (seed, cohort, network, purpose, epoch), never from one generator
that runs on. So a network is the same whichever part of its cohort a job trains, and wherever a job resumes.
"""

from __future__ import annotations

import zlib

import numpy as np

WEIGHTS, ORDER, ABLATION, AUGMENTATION, MASKS, WINDOWS = range(6)
"""Purposes for which a network draws random numbers: its initial weights, the order of its training examples, the
feature maps that are ablated, augmentation, dropout masks, the lengths of windows of text."""


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
