"""A made-up table of each result, in which its claims hold, for tests of what all results have in common."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
from cca_dynamics.config.models import ResultOptions
from cca_dynamics.results import calibration, toy_rnn
from cca_dynamics.results.tables import tidy
from cca_dynamics.study import Study

from tests import test_results_grounding as grounding
from tests import test_results_groups as groups
from tests import test_results_invariance as invariance
from tests import test_results_layer_identification as identification
from tests import test_results_over_training as over_training
from tests import test_results_sweep as sweep


def options_of(default_config: dict[str, Any], result: str) -> ResultOptions:
    """The options of the default study, without language models in `stability`, of which there is no table."""
    config = deepcopy(default_config)
    config["results"]["stability"]["recurrent"] = None
    return Study(config).options(result)


def made_up_table(result: str, options: ResultOptions) -> pd.DataFrame:
    """The table of a result under its options."""
    match result:
        case "generalization":
            return groups.generalization_table(groups.AS_PUBLISHED)
        case "width":
            return groups.width_table(groups.FALLING, groups.FLAT, groups.RISING).assign(floor=0.9)
        case "stability":
            return over_training.stability_table()
        case "recurrent_training":
            return over_training.recurrent_training_table()
        case "recurrent_sequence":
            return over_training.recurrent_sequence_table()
        case "clusters":
            return sweep.planted(np.random.default_rng(0))
        case "toy_noise":
            falling = np.linspace(1, 0, len(options.signal))
            return sweep.noise_table(
                options.signal, mean_cca=0.1 + 0.7 * falling, svcca=0.05 + 0.7 * falling, pwcca=0.04 + 0.3 * falling
            )
        case "grounding":
            return grounding.points_table()
        case "toy_rnn":
            return sweep.rnn_table(toy_rnn.readings(options), [float(alpha) for alpha in options.alphas])
        case "calibration":
            return calibration_table()
        case "invariance":
            return invariance.invariance_table(options.measures)
        case "layer_identification":
            return identification.identification_table(identification.AS_PUBLISHED)
    raise ValueError(f"{result} has no made-up table")


def calibration_table(networks: int = 5, noise: float = 0.004, **levels: tuple[float, float, float]) -> pd.DataFrame:
    """Distances of `calibration` in each way, plus a little noise.

    Args:
        networks: of each kind and each width.
        noise: standard deviation.
        levels: way → the mean distance of generalizing and of memorizing networks, and of the widest as a share of the
            narrowest.
    """
    rng = np.random.default_rng(0)
    levels = dict.fromkeys(calibration.WAYS, (0.2, 0.4, 0.5)) | {calibration.CHANCE: (0.8, 0.8, 0.99)} | levels
    a, b = np.nonzero(~np.eye(networks, dtype=bool))
    pairs = {"network_a": a, "network_b": b, "quantity": "distance"}
    tables = []
    for way, (generalizing, memorizing, share) in levels.items():
        for group, level in (("generalizing", generalizing), ("memorizing", memorizing)):
            for index, layer in enumerate(("conv3", "conv4", "conv5")):
                value = level + noise * rng.normal(size=len(a))
                columns = {
                    "figure": "3",
                    "group": group,
                    "layer": layer,
                    "layer_index": index,
                    "filters": 32 * 2**index,
                }
                tables.append(pd.DataFrame({**pairs, "way": way, "value": value, **columns}))
        for multiplier in (0.25, 0.5, 1):
            value = memorizing * share ** (np.log2(multiplier / 0.25) / 2) + noise * rng.normal(size=len(a))
            columns = {
                "figure": "4",
                "group": f"width-{multiplier:g}",
                "layer": "conv5",
                "filters": int(128 * multiplier),
            }
            tables.append(pd.DataFrame({**pairs, "way": way, "value": value, **columns}))
    return tidy(tables)
