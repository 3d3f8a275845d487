"""What the documentation says is so: its links lead somewhere, its commands run, its code and its numbers are right.

A fenced command that needs more than a clone is marked by a comment above the fence, `<!-- needs: GPU -->`; it is
parsed but not run. A command that is meant to fail ends in a comment, `# fails: what it says`. A fenced block whose
first line is `# PATH` or `# PATH, before TEXT` is a file, or goes into one.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cca_dynamics import cli
from cca_dynamics.config.base import as_json
from cca_dynamics.similarity import mean_cca, null_floor, pwcca
from cca_dynamics.study import Study, json_schema

from tests.builders import ROOT, copy_workflow, docs_generator, jobs_of, snakemake, variables

DOCS = ROOT / "docs"
GENERATED = ("reference-config.md", "reference-command-line.md")
WRITTEN = sorted(path for path in DOCS.glob("*.md") if path.name not in GENERATED)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *WRITTEN]
PROGRAMS = {
    "snakemake",
    "make",
    "cca-dynamics",
    "python",
    "git",
    "conda",
    "pip",
    "podman",
    "source",
    "cd",
    "export",
    "cp",
    "sha256sum",
}
PRELUDE = """
import numpy as np
rng = np.random.default_rng(0)
x, y = rng.normal(size=(200, 5)), rng.normal(size=(200, 7))
representations = [x, y, x + rng.normal(size=x.shape)]
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text, and what its commands need."""

    page: Path
    line: int
    language: str
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def place(self) -> tuple[str, str] | None:
        """(path, where in it, "" for the whole file) if the block is part of a file of the repository."""
        known = r"(?:workflow|studies)/\S+?\.\w+|config\.yaml"
        found = re.match(rf"(?:#|\.\.) ({known})(?:, (at the end|(?:before|after|instead of) .+))?$", self.head)
        return (found[1], found[2] or "") if found else None

    @property
    def head(self) -> str:
        return self.text.partition("\n")[0]


@cache
def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found, lines, i = [], page.read_text(encoding="utf-8").splitlines(), 0
    while i < len(lines):
        if opening := re.match(r"( *)```(\S*)", lines[i]):
            indent, language = opening.groups()
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == "```")
            text = "\n".join(line.removeprefix(indent) for line in lines[i + 1 : end])
            needs = re.fullmatch(r" *<!-- needs: (.+) -->", lines[i - 1]) if i else None
            found.append(Block(page, i + 1, language, text, needs[1] if needs else None))
            i = end
        i += 1
    return found


ALL = [block for page in PAGES for block in blocks(page)]


@cache
def generated() -> dict[str, str]:
    """The pages that `make docs` writes."""
    return docs_generator().pages()


def prose(text: str) -> str:
    """Without fenced blocks and code."""
    text = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(text: str) -> set[str]:
    """What headings are called in links."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.M | re.S), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        text = generated().get(file.name) if file.parent == DOCS else None
        assert text or file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(text or file.read_text(encoding="utf-8")), f"{page.name}: {target}"


def test_every_page_is_in_the_table_of_contents():
    contents = [line for block in blocks(DOCS / "index.md") for line in block.text.splitlines()]
    pages = {path.stem for path in WRITTEN} | {Path(name).stem for name in generated()}
    assert pages - {"index"} == {line for line in contents if re.fullmatch(r"[a-z-]+", line)}


def commands(block: Block) -> list[tuple[list[str], str]]:
    """(words, comment) of each command of a block; nothing if it holds no commands."""
    lines = [line for line in block.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    starts = [line.split()[0] in PROGRAMS for line in lines]
    if block.language not in ("sh", "console") and not (block.language == "" and any(starts)):
        return []
    found = []
    for line in lines:
        command, _, comment = re.sub(r"^\$ ", "", line).partition(" #")
        words = shlex.split(command)
        while "&&" in words:
            found.append((words[: words.index("&&")], ""))
            words = words[words.index("&&") + 1 :]
        found.append((words, comment.strip()))
    return found


COMMANDS = [(block, words, comment) for block in ALL for words, comment in commands(block)]


def test_commands_are_found():
    assert {"README.md", "tutorial.md", "how-to-run.md", "how-to-extend.md"} <= {b.page.name for b, _, _ in COMMANDS}
    assert len(COMMANDS) > 40


def test_programs_targets_and_subcommands_exist(capsys):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    texts = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for target in re.findall(r"`make ([a-z-]+)`", texts):
        assert target in targets, f"make {target}"
    for block, words, _ in COMMANDS:
        assert words[0] in PROGRAMS, f"{block}: {words[0]} is not known; is it a command?"
        if words[0] == "make":
            assert [w for w in words[1:] if "=" not in w and w not in targets] == [], f"{block}: {shlex.join(words)}"
        if words[0] == "cca-dynamics":
            try:
                cli._parser().parse_args(words[1:])
            except SystemExit as end:
                assert end.code == 0, f"{block}: {shlex.join(words)}\n{capsys.readouterr().err}"
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists(), f"{block}: {shlex.join(words)}"


def insert(folder: Path, block: Block) -> None:
    """Put a block where its first line says."""
    name, where = block.place
    path, lines = folder / name, block.text.splitlines()[1:]
    if not where:
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    old = path.read_text(encoding="utf-8").splitlines()
    first = last = len(old)
    if where != "at the end":
        how, text = re.match(r"(before|after|instead of) (.+)", where).groups()
        place = next((i for i, line in enumerate(old) if line.strip().startswith(text)), None)
        assert place is not None, f"{block}: no line of {name} begins with {text}"
        first, last = place + (how == "after"), place + (how != "before")
    path.write_text("\n".join([*old[:first], *lines, *old[last:]]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A working copy with the overlays that the documentation writes."""
    folder = copy_workflow(tmp_path_factory.mktemp("docs") / "cca-dynamics")
    for block in ALL:
        if block.place and block.place[0].startswith("studies/"):
            insert(folder, block)
    return folder


@pytest.mark.thorough
def test_snakemake_commands_would_run(clone):
    """Each a dry run, but for those that are marked."""
    runs: dict[tuple[str, ...], tuple[Block, str]] = {}
    for block, words, comment in COMMANDS:
        if words[0] == "snakemake" and not block.needs:
            plain = tuple(word for word in words[1:] if word not in ("-n", "--dry-run"))
            runs.setdefault(plain, (block, comment.partition("fails: ")[2]))

    def dry(words: tuple[str, ...]) -> subprocess.CompletedProcess:
        return snakemake(clone, *(() if "--unlock" in words else ("--dry-run", "--quiet=all")), *words)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = dict(zip(runs, pool.map(dry, runs), strict=True))
    for words, run in done.items():
        block, message = runs[words]
        text = run.stdout + run.stderr
        assert (run.returncode != 0) == bool(message) and message in text, (
            f"{block}: snakemake {shlex.join(words)}\n{text}"
        )
    assert len(runs) > 15


@pytest.mark.thorough
def test_the_tutorial(clone):
    """Its commands for real, what it says of the dry run, and the table at its end."""
    page = DOCS / "tutorial.md"
    verdicts, expected = (block.text.splitlines() for block in blocks(page) if block.language == "text")
    mine = ("width", "--configfile", "studies/smoke.yaml", "studies/mine.yaml")
    run = snakemake(clone, *mine[:3])
    assert run.returncode == 0, run.stdout + run.stderr
    shown = [_without_numbers(line) for line in run.stdout.splitlines()]
    for line in verdicts:
        assert _without_numbers(line) in shown, f"{line}\n{run.stdout}"
    dry = snakemake(clone, *mine, "-n")
    text = [line.rstrip() for line in (dry.stdout + dry.stderr).splitlines()]
    assert [line for line in expected if line.rstrip() not in text] == [], "\n".join(text)
    before = (clone / "figures/smoke/width.png").read_bytes()
    run = snakemake(clone, *mine)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (clone / "figures/smoke/width.png").read_bytes() != before
    assert len(list((clone / "results/smoke/networks").glob("width-*"))) == 4
    table = pd.read_parquet(clone / "results/smoke/width.parquet")
    assert set(table["measure"].dropna()) == {"pwcca", "procrustes"}
    again = snakemake(clone, *mine, "-n")
    assert "othing to be done" in again.stdout + again.stderr


def _without_numbers(line: str) -> str:
    """A line of a table of verdicts without what depends on the machine."""
    return " ".join(word for word in line.split() if not re.fullmatch(r"[<−-]?\d*\.?\d+", word))


EXTENSIONS = [block for block in blocks(DOCS / "how-to-extend.md") if block.place]
"""What the page on extending puts into files of the repository."""
OVERLAYS = [f"studies/{name}.yaml" for name in ("smoke", "stripes", "numbers", "pairs", "squared")]
"""A study that uses all of it."""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A working copy with all extensions of the page; and the files of it that were changed or are new."""
    folder = copy_workflow(tmp_path_factory.mktemp("extended") / "cca-dynamics")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for block in EXTENSIONS:
        insert(folder, block)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = {path.relative_to(folder).as_posix() for path in after if after[path] != before.get(path)}
    return folder, {path for path in changed if not path.startswith("studies/")}


def test_extensions_touch_what_the_page_says(extended):
    text = (DOCS / "how-to-extend.md").read_text(encoding="utf-8")
    promises = []  # (line, paths) of each section
    for match in re.finditer(r"^Touched: ((?:.|\n)+?)\.$", text, flags=re.MULTILINE):
        promises.append((text[: match.start()].count("\n") + 1, set(re.findall(r"`([^`]+)`", match[1]))))
    written = {line: set() for line, _ in promises}
    for block in EXTENSIONS:
        if not block.place[0].startswith("studies/"):
            written[max(line for line in written if line < block.line)].add(block.place[0])
    assert len(promises) == 5
    assert written == dict(promises)
    assert extended[1] == set.union(*written.values())
    table = [row.strip("|").split("|") for row in text.splitlines() if row.startswith("| [")][1:]
    for (*_, files), (_, paths) in zip(table, promises, strict=True):
        stated = {path.replace("NAME", "unrelated") for path in re.findall(r"`([^`]+)`", files)}
        assert stated == {path.removeprefix("workflow/cca_dynamics/") for path in paths}


@pytest.mark.thorough
def test_extensions_are_accepted(extended):
    """A study that uses all of them, in one process; nothing is trained, and nothing old would be made again."""
    folder, _ = extended
    code = f"""
import sys
from pathlib import Path
from cca_dynamics.data.corpora import size_of
from cca_dynamics.data.datasets import shape_of
from cca_dynamics.errors import ConfigError
from cca_dynamics.networks.architectures import describe
from cca_dynamics.report.captions import caption_of
from cca_dynamics.study import Study, read_config

config = read_config([Path(path) for path in {OVERLAYS!r}])
study = Study({{**config, "targets": ["width", "unrelated"]}})
assert study.name == "stripes" and shape_of(study.config.dataset) == ((1350, 450), (1, 8, 8), 10)
assert size_of(study.config.corpus) == (300_000, 50_000, 11)
for cohort in study.cohorts_of("width"):
    widths = describe(cohort.network, 1, (8, 8), 10).widths
    assert cohort.network.name == "pairnet" and list(widths) == ["block1", "block2", "block3", "softmax"]
assert study.options("width").measures == ("pwcca", "mean_squared_cca")
assert study.cohorts_of("unrelated") == [] and study.options("unrelated").draws == 10
assert "floor" in caption_of("unrelated")
config["results"]["unrelated"]["points"] = [30, 400]
try:
    Study({{**config, "targets": ["unrelated"]}})
except ConfigError as problem:
    assert str(problem) == "config key results.unrelated.points: 30 are too few; give more than 41", problem
else:
    raise AssertionError("too few points are accepted")
assert "torch" not in sys.modules
sys.path.append({str(ROOT)!r})
from tests.builders import jobs_of
print(jobs_of(Study({{}})))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=variables(folder), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(jobs_of(Study({})))


@pytest.mark.slow
def test_extensions_work(extended):
    """The same study, run."""
    folder, _ = extended
    corpus = "results/stripes/data/corpus.safetensors"
    run = snakemake(folder, "width", "unrelated", corpus, "--configfile", *OVERLAYS)
    logs = "\n".join(path.read_text() for path in folder.glob("logs/**/*.log"))
    assert run.returncode == 0, run.stdout + run.stderr + logs
    table = pd.read_parquet(folder / "results/stripes/width.parquet")
    assert set(table["measure"].dropna()) == {"pwcca", "mean_squared_cca"} and table["n"].max() == 1350
    networks = folder / "results/stripes/networks/width-1/0-1"
    assert '"pairnet"' in (networks / "recipe.json").read_text()
    assert '"numbers"' in (folder / "results/stripes/data/corpus.json").read_text()
    (claim,) = pd.read_csv(folder / "results/stripes/claims/unrelated.csv").itertuples()
    assert claim.verdict == "reproduced" and abs(claim.value) < 0.01
    for result in ("width", "unrelated"):
        assert (folder / f"figures/stripes/{result}.png").exists()
    plan = snakemake(folder, "width", "unrelated", "plan", "--configfile", *OVERLAYS, "-n")
    assert plan.returncode == 0, plan.stdout + plan.stderr


@pytest.mark.slow
def test_the_page_on_archives(finished, tmp_path):
    """Its commands for real, one after the other, in a copy of the smoke study."""
    folder = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    page = [block for block in blocks(DOCS / "cite-and-archive.md") if block.language == "sh" and not block.needs]
    script = "\n".join(["set -e", *(block.text for block in page)])
    run = subprocess.run(["bash", "-c", script], cwd=folder, env=variables(folder), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "as in the crate" in run.stdout and "smoke.zip" in run.stdout and "claims.csv: OK" in run.stdout


@pytest.mark.slow
def test_the_module_of_another_workflow(clone):
    """The Snakefile of the page, beside a clone."""
    (block,) = (block for block in blocks(DOCS / "how-to-run.md") if block.language == "snakemake")
    (clone.parent / "Snakefile").write_text(block.text)
    run = snakemake(clone.parent, "--cores", "1", "--dry-run", PYTHONPATH=str(clone / "workflow"))
    assert run.returncode == 0 and "summary" in run.stdout + run.stderr, run.stdout + run.stderr


def test_rooms_are_described_by_their_docstrings():
    """CONTRIBUTING.md has every room of the package, in the words of its docstring, and the tests of every room."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    start = text.index("| Room |")
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in text[start:].split("\n\n")[0].splitlines()]
    package = ROOT / "workflow" / "cca_dynamics"
    described = {name.strip("`"): sentence for name, sentence, *_ in table[2:]}
    rooms = {f"{path.parent.name}/": path for path in package.glob("*/__init__.py")}
    rooms |= {path.name: path for path in package.glob("*.py") if path.name != "__init__.py"}
    docstrings = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in rooms.items()}
    first_sentences = {
        name: " ".join(re.match(r".+?\.(?=\s|$)", docstring, flags=re.DOTALL)[0].split())
        for name, docstring in docstrings.items()
    }
    assert described == first_sentences
    after = text[start:].partition("\n## ")[0]
    assert {path.stem for path in (ROOT / "tests").glob("test_*.py")} == set(re.findall(r"`(test_\w+)`", after))
    assert all(re.fullmatch(r"\d+", seconds) and int(seconds) < 60 for *_, seconds in table[2:])


@pytest.mark.parametrize("page", [ROOT / "README.md", *WRITTEN], ids=lambda page: page.name)
def test_python_runs(page, tmp_path):
    code = [b.text for b in blocks(page) if b.language == "python" and not b.place and not b.needs]
    if not code:
        pytest.skip("no Python on this page")
    run = subprocess.run(
        [sys.executable, "-c", "\n".join([PRELUDE, *code])], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def rows(heading: str) -> list[list[str]]:
    """The body of the table of explanation.md whose first column is called so."""
    lines = (DOCS / "explanation.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |")) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


def test_the_worked_example():
    data = np.array([[float(cell) for cell in row] for row in rows("data point")])[:, 1:]
    x, y = data[:, :2], data[:, 2:]
    a, b = np.repeat([1, -1], 4), np.tile(np.repeat([1, -1], 2), 2)
    c, d = np.tile([1, -1], 4), a * b
    assert (x == np.column_stack([2 * a, b])).all() and (y == np.column_stack([4 * a + 3 * c, d])).all()
    mixed = np.array([[1, 1], [1, -1]])
    result = pwcca(x, y)
    computed = {
        "ρ₁": result.correlations[0],
        "ρ₂": result.correlations[1],
        "mean CCA distance": mean_cca(x, y).distance,
        "α₁ of x": result.weights_x[0],
        "α₂ of x": result.weights_x[1],
        "PWCCA from x to y": result.distance,
        "PWCCA from y to x": result.reverse,
        "PWCCA from x to y, 10 added to every neuron": pwcca(x + 10, y + 10).distance,
        "PWCCA from x to y, y's neurons replaced by y₁ + y₂ and y₁ − y₂": pwcca(x, y @ mixed).distance,
        "PWCCA from x to y, x₂ replaced by x₁ + x₂": pwcca(x @ np.array([[1, 1], [0, 1]]), y).distance,
        "floor": result.floor,
    }
    stated = {name: float(value) for name, value in rows("quantity")}
    assert stated == {name: pytest.approx(value, abs=5e-5) for name, value in computed.items()}


def test_the_floors_of_the_explanation():
    text = (DOCS / "explanation.md").read_text(encoding="utf-8")
    assert "a floor of .73 on 5,000 data points and of .91 on 50,000" in text
    assert [round(null_floor(512, 512, n), 2) for n in (5_000, 50_000)] == [0.73, 0.91]
    assert "in the example it says .53, where the truth is .54" in text
    layers = np.random.default_rng(0).normal(size=(2, 20_000, 8, 2))
    x, y = np.linalg.qr(layers - layers.mean(axis=2, keepdims=True))[0]
    assert 1 - np.linalg.svd(x.mT @ y, compute_uv=False).mean() == pytest.approx(0.54, abs=0.01)


def schema_keys(node: dict, root: dict, prefix: str = ""):
    """Dotted names of all properties, through references and alternatives."""
    if "$ref" in node:
        yield from schema_keys(root["$defs"][node["$ref"].split("/")[-1]], root, prefix)
    for name, child in node.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from schema_keys(child, root, f"{prefix}{name}.")
    for alternative in [*node.get("oneOf", []), *node.get("anyOf", [])]:
        yield from schema_keys(alternative, root, prefix)


def test_every_key_is_in_the_reference(default_config):
    schema, page = json_schema(), generated()["reference-config.md"]
    stated: dict[str, str] = {}  # key → its rows; a key of several datasets, corpora or networks may have several
    for row in page.splitlines():
        for key in re.findall(r"^\| `([^`]+)` \|", row):
            stated[key] = stated.get(key, "") + row
    assert set(stated) == set(schema_keys(schema, schema))

    def leaves(config: dict, prefix: str = ""):
        for key, value in config.items():
            is_block = any(name.startswith(f"{prefix}{key}.") for name in stated)
            yield from leaves(value, f"{prefix}{key}.") if is_block and isinstance(value, dict) else [f"{prefix}{key}"]

    assert set(leaves(as_json(Study(default_config).config))) <= set(stated)
    assert "≥ 0, ≤ 4294967295" in stated["seed"] and "Seed of everything random" in stated["seed"]
    assert "`50`" in stated["networks_per_job"]
    assert "`[0.25, 0.375, 0.5, 0.75, 1.0]`" in stated["results.width.multipliers"]
    assert "numbers (> 0, ≤ 64)" in stated["results.width.multipliers"]
    assert "| train, compute, claims |" in stated["results.width.multipliers"]
    assert "≥ 100" in stated["dataset.train_size"] and "or `null`" in stated["dataset.train_size"]
    assert "(`image_folder`)" in stated["dataset.resize"] and "`glorot`, `awd_lstm`" in page


def test_every_subcommand_is_in_the_reference():
    page = generated()["reference-command-line.md"]
    for name, command in cli._parser()._subparsers._group_actions[0].choices.items():
        assert f"## cca-dynamics {name}\n" in page
        section = page.partition(f"## cca-dynamics {name}\n")[2].partition("\n## ")[0]
        for action in command._actions[1:]:
            assert (action.option_strings or [action.dest])[0] in section


def test_every_column_of_claims_is_described():
    from cca_dynamics.results.claims import COLUMNS

    text = (DOCS / "reference-files.md").read_text(encoding="utf-8")
    assert [column for column in COLUMNS if f"`{column}`" not in text] == []


MEASURED = {
    "layer_identification.pwcca": "| 0.20 (.111) |",
    "layer_identification.svcca": "| 0.12 (.099) |",
    "layer_identification.mean_cca": "| 0.20 (.014) |",
    "layer_identification.linear_cka": "| 1.00 (.993) |",
    "invariance.moved_pwcca": "0.01 or 0.24",
    "invariance.moved_pwcca_reverse": "or 0.24",
    "invariance.unrelated_pwcca": "| 0.61 |",
    "invariance.unrelated_linear_cka": "0.10, debiased −0.01",
    "invariance.unrelated_linear_cka_debiased": "debiased −0.01",
    "grounding.deletion_pwcca": "directions 0.95 (.87)",
    "grounding.deletion_pwcca_common": "| −0.74, over",
    "grounding.seeds_pwcca": "| 0.22 | 0.24",
    "grounding.seeds_linear_cka": "| 0.11 |",
    "grounding.seeds_procrustes": "| 0.19 |",
    "calibration.labels_calibrated": "is 0.42 when",
    "calibration.labels_debiased_cka": "0.57 in debiased CKA",
    "calibration.labels_equal_neurons": "0.47 on equally",
    "calibration.width_equal_neurons": "by 0.020 on",
    "calibration.width_debiased_cka": "by 0.058 in",
    "calibration.width_calibrated": "*rises* by 0.017",
}
"""Claim → where docs/which-measure.md says its value."""


@pytest.mark.parametrize("claim", MEASURED)
def test_which_measure_has_the_values_of_the_published_run(claim):
    table = pd.read_csv(ROOT / "figures/reference/mnist1d/claims.csv").set_index("claim")
    words = MEASURED[claim]
    assert words in (ROOT / "docs/which-measure.md").read_text(encoding="utf-8")
    number = re.search(r"[−]?\d+\.\d+", words)[0].replace("−", "-")
    digits = len(number.partition(".")[2])
    value = table.loc[claim, "value"]
    value = -value if "rises" in words else value
    assert f"{value:.{digits}f}" == number
