"""The paper's results, one module each.

A result module has

    check(study)            refuse a config that contradicts itself (ConfigError)
    cohorts(study)          the cohorts of networks it needs
    compute(inputs, options)  → tidy table, exactly the data drawn
    claims(table, options)  → the paper's statements about it, each with a computed verdict
    plot(table, claims, options) → the figure

and, if it trains nothing, comparisons(options): how many layers of what size it compares, for `plan`.

The first two run whenever the DAG is built, so the modules import torch and matplotlib only inside the others.
Adding a result: one module and its line here, one block in config.yaml and its schema, one caption in workflow/report/.
"""

from cca_dynamics.results import (
    clusters,
    generalization,
    recurrent_sequence,
    recurrent_training,
    stability,
    toy_noise,
    toy_rnn,
    width,
)

RESULTS = {
    "stability": stability,
    "toy_noise": toy_noise,
    "generalization": generalization,
    "width": width,
    "clusters": clusters,
    "recurrent_training": recurrent_training,
    "recurrent_sequence": recurrent_sequence,
    "toy_rnn": toy_rnn,
}
