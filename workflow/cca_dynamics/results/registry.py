"""The registry of results. Adding one: a module as results/__init__.py describes it, and its line here."""

from cca_dynamics.results import (
    clusters,
    generalization,
    grounding,
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
    "grounding": grounding,
}
