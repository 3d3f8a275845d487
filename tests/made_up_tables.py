"""A made-up table of each result, in which its claims hold, for tests of what all results have in common."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
from cca_dynamics.config.models import ResultOptions
from cca_dynamics.results import toy_rnn
from cca_dynamics.study import Study

from tests import test_results_grounding as grounding
from tests import test_results_groups as groups
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
    raise ValueError(f"{result} has no made-up table")
