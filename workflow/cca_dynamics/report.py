"""One page to read a finished study: verdicts, figures that can be hovered, data, config, runtime, provenance.

The page is one file that asks the network for nothing. Snakemake's own `snakemake --report` shows it, too.
"""

from __future__ import annotations

import base64
import inspect
import json
import struct
from collections.abc import Iterator
from math import isnan
from pathlib import Path

import pandas as pd
import yaml

from cca_dynamics.figures import MEASURES
from cca_dynamics.files import DamagedFile, replacing
from cca_dynamics.provenance import TEXTS
from cca_dynamics.reference import runtime_rows
from cca_dynamics.results import RESULTS
from cca_dynamics.results.tables import DIVERGED
from cca_dynamics.study import Study
from cca_dynamics.verdicts import MARKS, in_words, read

PANELS = {"train": "training data", "test": "test data", "lstm": "base model", "lstm-deeper": "deeper model"}
"""Names of splits and cohorts."""
LARGEST_CSV = 3_000_000
"""Bytes of a table that is offered as CSV; a larger one is offered as parquet, a tenth of the size."""


def write(config: dict, out: Path, root: Path = Path()) -> None:
    """Write the page of a finished study.

    Args:
        config: the validated config, see `study.Study.config`.
        out: the page, HTML.
        root: the folder that holds results/ and figures/.

    Raises:
        DamagedFile: a table, a figure or the manifest is missing or cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    study = Study(config)
    results = root / "results" / study.name
    table = read(results / "claims.csv")
    manifest = _json(results / "manifest.json")
    environment = Environment(
        loader=FileSystemLoader(TEXTS), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    counts = table["verdict"].value_counts()
    shown = [_result(study, name, table, root) for name in study.targets]
    page = environment.get_template("report.html").render(
        study=study.name,
        seed=study.seed,
        claims=[_claim(row) for row in table.itertuples()],
        counts=[(verdict, MARKS[verdict][0], int(counts.get(verdict, 0))) for verdict in MARKS],
        results=shown,
        charts=_embedded({result["name"]: result["chart"] for result in shown if result["chart"]}),
        plotly=get_plotlyjs() if any(result["chart"] for result in shown) else "",
        manifest={key: manifest[key] for key in ("code", "packages", "hardware")},
        config=yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True),
        runtime=runtime_rows(study.name, root),
        data=_datasheet(results),
    )
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _result(study: Study, name: str, table: pd.DataFrame, root: Path) -> dict:
    """What the page shows of one result."""
    figures, results = root / "figures" / study.name, root / "results" / study.name
    path = results / f"{name}.parquet"
    try:
        data = pd.read_parquet(path)
        image, vector = ((figures / f"{name}.{suffix}").read_bytes() for suffix in ("png", "pdf"))
        caption = (TEXTS / f"{name}.rst").read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None
    own = table[table["claim"].str.startswith(f"{name}.")]
    about = inspect.getdoc(RESULTS[name]).splitlines()[0].partition(": ")[2].rstrip(".")
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in own["verdict"].value_counts().items())
    csv = data.to_csv(index=False).encode()
    kind, content = ("csv", csv) if len(csv) <= LARGEST_CSV else ("parquet", path.read_bytes())
    return {
        "name": name,
        "about": about[0].upper() + about[1:],
        "figures": ", ".join(own["figure"].unique()),
        "verdicts": verdicts,
        "image": _uri("image/png", image),
        "size": struct.unpack(">II", image[16:24]),  # width and height, so that nothing moves when it is decoded
        "pdf": _uri("application/pdf", vector),
        "alt": f"Figure: {about}. {verdicts}. The caption below explains its panels; its data can be downloaded.",
        "caption": _html(caption),
        "data": {"kind": kind, "rows": len(data), "uri": _uri("text/csv", content)},
        "config": yaml.safe_dump({"results": {name: study.config["results"][name]}}, sort_keys=False),
        "chart": chart(name, data),
    }


def chart(name: str, table: pd.DataFrame) -> dict | None:
    """The data of a result's interactive chart; None: it has none.

    Args:
        name: of the result.
        table: its table.

    Returns:
        Of clusters {"kind": "matrix", "values": (N, N) distances in the order of the figure, "networks": N labels,
        "groups": N learning rates}; of results with curves over layers or epochs {"kind": "curves", "x", "y": axis
        names, "panels": panel → curve → {"x", "y", "sd", "n"}}.
    """
    table = table[table["quantity"] != DIVERGED]
    distances = table[table["quantity"] == "distance"]
    if name == "clusters":
        return _matrix(table, distances)
    if name == "generalization":
        panel, x, curve, axis = ["measure", "split"], "layer", "group", "layer"
    elif name == "recurrent_training":
        panel, x, curve, axis = ["measure", "cohort"], "epoch", "layer", "epoch"
    else:
        return None
    panels: dict[str, dict] = {}
    for key, own in distances.groupby(panel, sort=False):
        curves = {}
        for label, line in own.groupby(curve, sort=False):
            # Layers keep the order of the network.
            found = line.groupby(x, sort=x == "epoch")["value"].agg(["mean", "std", "size"])
            curves[str(label)] = {
                "x": found.index.tolist(),
                "y": found["mean"].round(4).tolist(),
                "sd": found["std"].fillna(0).round(4).tolist(),
                "n": found["size"].tolist(),
            }
        measure, which = key
        panels[f"{MEASURES[measure]}, {PANELS.get(which, which)}"] = curves
    return {"kind": "curves", "x": axis, "y": "distance", "panels": panels}


def _matrix(table: pd.DataFrame, distances: pd.DataFrame) -> dict:
    """Both directions averaged, networks as in the figure."""
    place = table[table["quantity"] == "place"].set_index("network")["value"].astype(int).sort_values()
    rate = table[table["quantity"] == "learning_rate"].set_index("network")["value"]
    square = distances.pivot_table(index="network_a", columns="network_b", values="value").reindex(
        index=place.index, columns=place.index
    )
    values = (square.to_numpy() + square.to_numpy().T) / 2
    rows = [[None if isnan(value) else round(float(value), 4) for value in row] for row in values]
    return {
        "kind": "matrix",
        "values": rows,
        "networks": [f"network {i}" for i in place.index],
        "groups": [f"{rate[i]:g}" for i in place.index],
    }


def _claim(row) -> dict:
    """A row of the table of verdicts; numbers as text and as what they are sorted by."""
    value, p, paper = in_words(row)
    return {
        "result": row.claim.partition(".")[0],
        "claim": row.claim,
        "figure": row.figure,
        "statement": row.statement,
        "statistic": row.statistic,
        "value": value,
        "value_key": "" if isnan(row.value) else row.value,
        "p": p,
        "p_key": "" if isnan(row.p_value) else row.p_value,
        "paper": paper,
        "paper_key": "" if isnan(row.paper_value) else row.paper_value,
        "verdict": row.verdict,
        "mark": MARKS[row.verdict][0],
    }


def _datasheet(results: Path) -> list[tuple[str, object]]:
    """What is known of the data the networks were trained on."""
    found: list[tuple[str, object]] = []
    for name in ("datasheet.json", "corpus.json"):
        if (path := results / "data" / name).exists():
            found += [(key, value) for key, value in _flat(_json(path)) if not isinstance(value, list)]
    return found


def _flat(value: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def _embedded(value: object) -> str:
    """JSON that cannot end the <script> it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _html(text: str) -> str:
    """A caption, reStructuredText, as HTML."""
    from docutils.core import publish_parts

    settings = {"report_level": 5, "file_insertion_enabled": False, "raw_enabled": False}
    return publish_parts(text, writer="html5", settings_overrides=settings)["body"]


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
