"""Random configs: each makes a study that `snakemake -n` plans, or is refused in one line that names its key.

The quick tests build the study in this process. The one that is marked slow (`make test-fuzz`) gives every config to
Snakemake itself, whose answer must be the same.
"""

import json
import multiprocessing
import os
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml
from cca_dynamics.config.base import as_argument
from cca_dynamics.errors import ConfigError
from cca_dynamics.study import Study, json_schema, read_config
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.builders import HOSTILE, ROOT, copy_workflow, overlays_of

OVERLAYS = ([], *map(overlays_of, sorted(ROOT.glob("studies/*.yaml"))))
STUDIES = [read_config(overlays, ROOT / "config.yaml") for overlays in OVERLAYS]
SMOKE = read_config([ROOT / "studies/smoke.yaml"], ROOT / "config.yaml")
SCHEMA = json_schema()


def leaves(config: dict, path=()) -> dict[tuple, object]:
    """Path → value of all values of a config that are no blocks."""
    found = {}
    for key, value in config.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


def changed(config: dict, path: tuple, value: object) -> dict:
    """A copy with another value at a path."""
    config = json.loads(json.dumps(config))
    block = config
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    return config


ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["conv1", "conv5", "softmax", "lstm1", "adam", "pwcca", "mnist1d", "resnet", "auto", "width", *HOSTILE]
    ),
    st.text(max_size=20),
    st.lists(st.integers(-2, 40), max_size=4),
    st.lists(st.sampled_from(["pwcca", "svcca", "conv1", "conv2", "width"]), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
ELSEWHERE = {path: [leaves(study)[path] for study in STUDIES if path in leaves(study)] for path in leaves(SMOKE)}


def near(path: tuple) -> st.SearchStrategy:
    """Values that somebody might try: another study's, a little more or less, part of a list."""
    value = leaves(SMOKE)[path]
    others = st.sampled_from(ELSEWHERE[path])
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        return others
    if isinstance(value, list):
        return others | st.lists(st.sampled_from(value), unique_by=repr) if value else others
    return others | st.sampled_from(
        [value + 1, value - 1, 2 * value, value // 2 if isinstance(value, int) else value / 2]
    )


PATHS = st.sampled_from(list(ELSEWHERE))
LIKELY = PATHS.flatmap(lambda path: st.tuples(st.just(path), near(path)))
CHANGES = st.sampled_from([LIKELY, LIKELY, LIKELY, st.tuples(PATHS, ANY)]).flatmap(lambda change: change)


def with_changes(changes: list[tuple[tuple, object]]) -> dict:
    config = SMOKE
    for path, value in changes:
        config = changed(config, path, value)
    return config


def refusal(config: dict) -> ConfigError | None:
    """Why a config is refused; None if all that is decided before a job runs can be decided."""
    try:
        study = Study(config)
        for name, cohort in study.cohorts.items():
            for part in study.parts(name):
                as_argument([cohort.recipe(part, study.seed), cohort.requests])
        assert [as_argument(study.options(result)) for result in study.results]
    except ConfigError as problem:
        return problem
    return None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PATHS, ANY), min_size=1, max_size=3) | st.lists(CHANGES, min_size=1, max_size=3))
def test_any_config_makes_a_study_or_names_its_key(changes):
    if problem := refusal(with_changes(changes)):
        assert re.match(r"config key [\w.(]", str(problem)) and "\n" not in str(problem), str(problem)
        first = problem.key.partition(".")[0]
        assert first in SCHEMA["properties"] or first == "(top level)", problem.key


@settings(max_examples=60, deadline=None)
@given(PATHS, st.text(alphabet="abcdefgh_", min_size=1, max_size=8))
def test_unknown_keys_are_named(path, name):
    spelled = f"{path[-1]}_{name}"
    with pytest.raises(ConfigError) as found:
        Study(changed(SMOKE, (*path[:-1], spelled), 1))
    assert found.value.key == ".".join((*path[:-1], spelled)) or spelled in str(found.value)


def dry_run(folder: Path, config: str) -> tuple[int, str]:
    """Status and output of `snakemake --configfile CONFIG --dry-run`; for a process of its own."""
    from snakemake.cli import main

    os.chdir(folder)
    output = folder / f"{config}.log"
    with output.open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        main(["--configfile", config, "--dry-run", "--quiet"])
        status = 0
    except SystemExit as end:
        status = end.code or 0
    sys.stdout.flush()
    return status, output.read_text(encoding="utf-8")


@pytest.mark.slow
def test_snakemake_plans_every_config_or_refuses_it(tmp_path):
    folder = copy_workflow(tmp_path / "fuzz")
    tally, tried = Counter(), set()
    context = multiprocessing.get_context("forkserver")  # each dry run is a fork of a process that has imported it all
    context.set_forkserver_preload(["snakemake.cli", "cca_dynamics.study", "tests.test_fuzz"])

    @settings(max_examples=100, deadline=None, phases=[Phase.generate])
    @given(st.lists(st.lists(CHANGES, min_size=1, max_size=3), min_size=8, max_size=8, unique_by=repr))
    def batch(several):
        configs = {repr(changes): with_changes(changes) for changes in several if repr(changes) not in tried}
        tried.update(configs)
        names = []
        for config in configs.values():
            names.append(f"config-{tally.total() + len(names)}.yaml")
            (folder / names[-1]).write_text(
                yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8"
            )
        answers = list(pool.map(dry_run, [folder] * len(names), names))
        for changes, name, (status, output) in zip(configs, names, answers, strict=True):
            problem = refusal(read_config([folder / name], ROOT / "config.yaml"))
            tally["refused" if problem else "planned"] += 1
            assert (status != 0) == bool(problem) and "Traceback" not in output, f"{changes}: {problem}\n{output}"
            if problem:
                assert f"error: {problem}" in output.splitlines(), f"{changes}: {problem}\n{output}"

    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        batch()
    print(dict(tally))
    assert tally.total() >= 500 and min(tally["planned"], tally["refused"]) >= 100, tally
