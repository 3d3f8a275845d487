"""A made-up table of each result, in which its claims hold, for tests of what all results have in common."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
from cca_dynamics.config.models import ResultOptions, StageOptions
from cca_dynamics.results.inputs import Inputs
from cca_dynamics.results.registry import RESULTS
from cca_dynamics.study import Study

from tests import test_results_groups as groups
from tests import test_results_over_training as over_training
from tests import test_results as others

FEW = {
    "toy_noise": {"draws": 4, "signal": (4, 8, 12), "neurons": 16, "points": 100},
    "toy_rnn": {"networks": 4, "neurons": 4, "starts": 20, "steps": 10, "every": 5},
    "clusters": {"most_clusters": 5},
}
"""Options with which a table is small."""


def options_of(default_config: dict[str, Any], result: str) -> ResultOptions:
    """The options of the default study, small and without language models in `stability`."""
    config = deepcopy(default_config)
    config["results"]["stability"]["recurrent"] = None
    return Study(config).options(result).with_changes(FEW.get(result, {}))


def made_up_table(result: str, options: ResultOptions) -> pd.DataFrame:
    """The table; the toys compute theirs."""
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
            return others.sweep_table(*others.planted_rates(np.random.default_rng(0)))
    return RESULTS[result].compute(Inputs.from_paths([], []), StageOptions(options, "compute", seed=0))
