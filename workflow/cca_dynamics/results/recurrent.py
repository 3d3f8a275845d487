"""The language models that the recurrent results share."""

from __future__ import annotations

import math

from cca_dynamics.corpora import STREAMS
from cca_dynamics.study import Cohort, Study

SHALLOW, DEEPER = "lstm", "lstm-deeper"


def cohorts(study: Study) -> list[Cohort]:
    """The language models of a study, stored every `checkpoint_every` epochs, with all that any result wants of them.

    Every recurrent result asks for them here, so that they are trained and read once.
    """
    results, model = study.config["results"], study.config["language_model"]
    training, whole = results.get("recurrent_training"), {"embedding": model["embedding"], "tied": model["tied"]}
    sequence, stability = results.get("recurrent_sequence"), (results.get("stability") or {}).get("recurrent")
    points = (training or {}).get("data_points", 5000)
    curves = {"epochs": "all", "splits": ["valid"], "layers": "all", "points": points}
    requests = [curves] if training or stability else []
    if sequence:
        positions = sequence["positions"]
        requests.append(
            {
                "epochs": "final",
                "splits": ["sequence"],
                "layers": "all",
                "points": positions * sequence["sequences"],
                "positions": positions,
            }
        )
        repeats = {key: sequence[key] for key in ("sequences", "length", "starts")} | {"repeats": positions}
        requests.append({"epochs": "final", "splits": ["repeats"], "layers": "all", **repeats})
    end, every = study.config["language_training"]["epochs"], study.config["language_training"]["checkpoint_every"]
    epochs = {*range(0, end + 1, every), end}
    if stability:
        epochs |= {stability["early_epoch"], end // 2}
    shared = {"training": study.config["language_training"], "checkpoints": tuple(sorted(epochs)), "data": "corpus"}
    found = [
        Cohort(
            name=SHALLOW,
            networks=model["networks"],
            network={**whole, "sizes": model["sizes"]},
            activations=tuple(requests),
            **shared,
        )
    ]
    if training and training["deeper"]:
        inner, last = model["sizes"][0], model["sizes"][-1]
        found.append(
            Cohort(
                name=DEEPER,
                networks=training["deeper_networks"],
                network={**whole, "sizes": [inner] * (training["deeper"] - 1) + [last]},
                activations=(curves,),
                **shared,
            )
        )
    return found


def tokens_needed(study: Study) -> dict[str, int]:
    """The fewest tokens of each split that a study's language models need: one window, and the data points of CCA."""
    training, needed = study.config["language_training"], {"valid": 2 * STREAMS}
    needed["train"] = training["batch_size"] * (training["window"] + 1)
    for request in (request for cohort in cohorts(study) for request in cohort.activations):
        if "points" in request:
            block = STREAMS * request.get("positions", 1)
            tokens = math.ceil(request["points"] / block) * block
        else:
            tokens = request["length"] + request["sequences"]
        needed["valid"] = max(needed["valid"], tokens)
    return needed


def layers(sizes: list[int]) -> list[str]:
    """lstm1, lstm2, ..."""
    return [f"lstm{i + 1}" for i in range(len(sizes))]
