"""One page to read a finished study: verdicts, figures, interactive charts, data, config, time and memory, provenance.

The page is one file that loads nothing from the network. Snakemake's own `snakemake --report` contains it too.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator
from math import isnan
from pathlib import Path
from typing import TypeVar

import pandas as pd
import yaml

from cca_dynamics.config.base import as_json
from cca_dynamics.errors import DamagedFile
from cca_dynamics.report import multiverse, replicates, verification
from cca_dynamics.report.captions import caption_of
from cca_dynamics.report.summary import (
    MARKS,
    claims_of,
    counted_verdicts,
    difference_in_words,
    family_in_words,
    figures_in_words,
    numbers_in_words,
    result_of,
    runtime_rows,
    title_of,
    verdicts_in_words,
)
from cca_dynamics.results import claims, figures
from cca_dynamics.results.tables import DIVERGED
from cca_dynamics.runtime.storage import replacing
from cca_dynamics.study import Study

Content = TypeVar("Content")
PANELS = {"train": "training data", "test": "test data", "lstm": "base model", "lstm-deeper": "deeper model"}
"""Names of splits and cohorts for a reader."""


def write(config: dict, out: Path, root: Path = Path()) -> None:
    """Write the page of a finished study.

    Args:
        config: the study's config as JSON; keys that are missing have their defaults.
        out: the page, HTML.
        root: the folder that holds results/ and figures/.

    Raises:
        ConfigError: the config cannot be run.
        DamagedFile: a table, a figure or the crate is missing or cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    study = Study(config)
    results = root / "results" / study.name
    all_claims = claims.read(results / "claims.csv")
    run = verification.read(study.name, root)
    sections = [_section(study, result, all_claims, root) for result in study.targets]
    charts = {section["name"]: section["chart"] for section in sections if section["chart"]}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("template.html").render(
        study=study.name,
        seed=study.seed,
        claims=[_claim(row) for row in all_claims.itertuples()],
        family=family_in_words(all_claims),
        counts=[(verdict, MARKS[verdict], count) for verdict, count in counted_verdicts(all_claims).items()],
        results=sections,
        replicates=_replicates(study, all_claims, root),
        readings=_readings(study, root),
        protocol=run.protocol,
        charts=_embedded(charts),
        plotly=_packed(get_plotlyjs().encode()) if charts else "",
        run=run,
        config=_yaml(run.config),
        runtime=runtime_rows(study.name, root),
        data=_datasheet(results),
    )
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _replicates(study: Study, all_claims: pd.DataFrame, root: Path) -> dict | None:
    """What the page shows of the study's replicates; None if none were run."""
    table = replicates.read_if_made(study.name, root)
    if table is None:
        return None
    image = _read(root / "figures" / study.name / "replicates.svg", Path.read_bytes)
    statements = dict(zip(all_claims["claim"], all_claims["statement"], strict=True))
    seeds = sorted(table["seed"].unique())
    rows = [
        {
            "claim": row.claim,
            "result": result_of(row.claim) if result_of(row.claim) in study.targets else "",
            "statement": statements.get(row.claim, ""),
            "holds": replicates.share_in_words(row),
            "holds_key": "" if not row.seeds else row.holds / row.seeds,
            "marks": " ".join(MARKS.get(verdict, "") for verdict in row.verdicts),
            "verdicts": ", ".join(verdict or "absent" for verdict in row.verdicts),
            "numbers": [
                (text, "" if isnan(number) else number)
                for text, number in (
                    (replicates.mean_in_words(row), row.mean),
                    (replicates.number_in_words(row.between), row.between),
                    (replicates.number_in_words(row.within), row.within),
                )
            ],
        }
        for row in replicates.summary(table).itertuples()
    ]
    return {
        "seeds": ", ".join(map(str, seeds)),
        "notes": study.protocol.lines(study.config, seeds) if study.protocol else [],
        "rows": rows,
        "image": _packed(image),
        "size": _size(image),
        "caption": _html(caption_of("replicates")),
        "data": _packed(table.to_csv(index=False).encode()),
    }


def _readings(study: Study, root: Path) -> dict | None:
    """What the page shows of the readings of what the paper leaves open; None if the target was not made."""
    table = multiverse.read_if_made(study.name, root)
    if table is None:
        return None
    folder = root / "figures" / study.name
    overview = _read(folder / "multiverse.svg", Path.read_bytes)
    curves = {path.stem: _read(path, Path.read_bytes) for path in sorted((folder / "multiverse").glob("*.svg"))}
    return {
        "image": _packed(overview),
        "size": _size(overview),
        "caption": _html(caption_of("multiverse")),
        "curves": [(result, _packed(image), _size(image)) for result, image in curves.items()],
        "data": _packed(table.to_csv(index=False).encode()),
    }


def _size(svg: bytes) -> list[int]:
    """Width and height of an SVG in points, so that nothing on the page moves when it is decoded.

    Raises:
        ValueError: it has none.
    """
    size = re.search(rb'<svg [^>]*?width="([0-9.]+)pt" height="([0-9.]+)pt"', svg)
    if size is None:
        raise ValueError("it is no figure of Matplotlib's")
    return [round(float(number)) for number in size.groups()]


def _section(study: Study, result: str, all_claims: pd.DataFrame, root: Path) -> dict:
    """What the page shows of one result."""
    table_path = root / "results" / study.name / f"{result}.parquet"
    figure_path = root / "figures" / study.name / f"{result}.svg"
    table = _read(table_path, pd.read_parquet)
    image = _read(figure_path, Path.read_bytes)
    claims_of_result, title = claims_of(result, all_claims), title_of(result)
    verdicts = verdicts_in_words(claims_of_result)
    csv = table.to_csv(index=False, float_format="%.7g").encode()  # as exact as single precision
    return {
        "name": result,
        "title": title[0].upper() + title[1:],
        "figures": figures_in_words(claims_of_result["figure"]),
        "verdicts": verdicts,
        "image": _packed(image),
        "size": _read(figure_path, lambda path: _size(path.read_bytes())),
        "alt": f"Figure: {title}. {verdicts}. The caption below explains its panels; its data can be downloaded.",
        "caption": _html(caption_of(result)),
        "data": {"rows": len(table), "csv": _packed(csv)},
        "config": _yaml({"results": {result: as_json(study.options(result))}}),
        "chart": chart(result, table),
    }


def chart(result: str, table: pd.DataFrame) -> dict | None:
    """The data of a result's interactive chart.

    Args:
        result: its name.
        table: its table.

    Returns:
        For clusters {"kind": "matrix", "values": (N, N) distances in the order of the figure, "networks": N labels,
        "groups": N learning rates}; for results with curves over layers or epochs {"kind": "curves", "x", "y": names
        of the axes, "panels": panel → curve → {"x", "y", "sd", "n"}}; None for results that have no chart.
    """
    table = table[table["quantity"] != DIVERGED]
    if result == "clusters":
        return _matrix(table)
    if result == "generalization":
        return _curves(table, panels="split", curves="group", x="layer")
    if result == "recurrent_training":
        return _curves(table, panels="cohort", curves="layer", x="epoch")
    return None


def _curves(table: pd.DataFrame, panels: str, curves: str, x: str) -> dict:
    """Mean distances over a column x, one curve per value of a column, one panel per measure and value of another."""
    distances = table[table["quantity"] == "distance"]
    chart: dict[str, dict] = {}
    for (measure, panel), rows in distances.groupby(["measure", panels], sort=False):
        panel_of_chart = chart[f"{figures.measure_label(measure)}, {PANELS.get(panel, panel)}"] = {}
        for label, curve in rows.groupby(curves, sort=False):
            # Epochs are sorted; layers keep the order of the network.
            statistics = curve.groupby(x, sort=x == "epoch")["value"].agg(["mean", "std", "size"])
            panel_of_chart[str(label)] = {
                "x": statistics.index.tolist(),
                "y": statistics["mean"].round(4).tolist(),
                "sd": statistics["std"].fillna(0).round(4).tolist(),
                "n": statistics["size"].tolist(),
            }
    return {"kind": "curves", "x": x, "y": "distance", "panels": chart}


def _matrix(table: pd.DataFrame) -> dict:
    """Distances between networks, averaged over both directions, with the networks in the order of the figure."""
    position = table[table["quantity"] == "place"].set_index("network")["value"].astype(int).sort_values()
    rate = table[table["quantity"] == "learning_rate"].set_index("network")["value"]
    distances = table[table["quantity"] == "distance"]
    square = distances.pivot_table(index="network_a", columns="network_b", values="value").reindex(
        index=position.index, columns=position.index
    )
    values = (square.to_numpy() + square.to_numpy().T) / 2
    return {
        "kind": "matrix",
        "values": [[None if isnan(value) else round(float(value), 4) for value in row] for row in values],
        "networks": [f"network {network}" for network in position.index],
        "groups": [f"{rate[network]:g}" for network in position.index],
    }


def _claim(row) -> dict:
    """A row of the table of verdicts; numbers as text, and as the keys that the table is sorted by."""
    value, p, paper = numbers_in_words(row)
    return {
        "result": result_of(row.claim),
        "claim": row.claim,
        "figure": figures_in_words([row.figure]),
        "statement": row.statement,
        "statistic": row.statistic,
        "value": value,
        "value_key": "" if isnan(row.value) else row.value,
        "p": p,
        "p_key": "" if isnan(row.p_value) else row.p_value,
        "paper": paper,
        "difference": f"ours − paper: {difference}" if (difference := difference_in_words(row)) else "",
        "paper_key": "" if isnan(row.paper_value) else row.paper_value,
        "verdict": row.verdict,
        "mark": MARKS[row.verdict],
    }


def _datasheet(results: Path) -> list[tuple[str, object]]:
    """What is known of the data that the networks were trained on; lists are left out."""
    entries: list[tuple[str, object]] = []
    for name in ("datasheet.json", "corpus.json"):
        if (path := results / "data" / name).exists():
            entries += [(key, value) for key, value in _flat(_read(path, _json)) if not isinstance(value, list)]
    return entries


def _flat(value: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Keys and values of nested dicts, the keys joined by dots."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _read(path: Path, reader: Callable[[Path], Content]) -> Content:
    """What a reader returns for a file.

    Raises:
        DamagedFile: the file is missing or cannot be read.
    """
    try:
        return reader(path)
    except (OSError, ValueError) as problem:
        raise DamagedFile(path, problem) from None


def _json(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _yaml(config: dict) -> str:
    """A config as YAML, with sorted keys."""
    return yaml.safe_dump(config, allow_unicode=True)


def _embedded(value: object) -> str:
    """JSON that cannot end the <script> it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _html(caption: str) -> str:
    """A caption, reStructuredText, as HTML."""
    from docutils.core import publish_parts

    settings = {"report_level": 5, "file_insertion_enabled": False, "raw_enabled": False}
    return publish_parts(caption, writer="html5", settings_overrides=settings)["body"]


def _packed(content: bytes) -> str:
    """Content as the page holds it, a fifth of its size: by gzip, in base64. The page's script unpacks it."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
