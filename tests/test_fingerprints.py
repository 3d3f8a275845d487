"""The code fingerprint changes with the code a stage runs, and with nothing else."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cca_dynamics.runtime import fingerprints

from tests.builders import ROOT


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of ours; returns a function that (re)writes a module of it."""
    root = tmp_path / "cca_dynamics"
    monkeypatch.setattr(fingerprints, "PACKAGE", root)

    def write(module: str, source: str) -> None:
        path = root.joinpath(*module.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(textwrap.dedent(source))
        fingerprints.forget()

    write("cca", "SCALE = 2\ndef core(x):\n    return SCALE * x\ndef unrelated(x):\n    return x\n")
    write("measures.__init__", "from cca_dynamics.measures.all import pwcca, MEASURES\n")
    write(
        "measures.all",
        """
        from cca_dynamics.cca import core
        def pwcca(x): return core(x)
        def cosine(x): return -x
        MEASURES = {"pwcca": pwcca, "cosine": cosine}
        """,
    )
    write(
        "result",
        """
        from cca_dynamics import plots
        def compute(x):
            from cca_dynamics.measures import MEASURES
            return MEASURES["pwcca"](x)
        def plot(x): return plots.draw(x)
        """,
    )
    write("plots", "def draw(x):\n    return x\n")
    yield write
    fingerprints.forget()


def of_stages():
    return {
        stage: fingerprints.code_fingerprint(f"result:{stage}", selected=["measures.all:pwcca"])
        for stage in ("compute", "plot")
    }


def changed(write, module, source):
    before = of_stages()
    write(module, source)
    after = of_stages()
    return {stage for stage in before if before[stage] != after[stage]}


def test_comments_docstrings_and_layout_change_nothing(package):
    source = '''
        """New docstring."""
        SCALE = 2  # a comment


        def core(x):
            """Twice."""
            return (
                SCALE * x
            )
        '''
    assert changed(package, "cca", source) == set()


def test_code_reached_through_functions_re_exports_and_registries_counts(package):
    assert changed(package, "cca", "SCALE = 2\ndef core(x):\n    return SCALE + x\n") == {"compute"}


def test_constants_count(package):
    assert changed(package, "cca", "SCALE = 3\ndef core(x):\n    return SCALE * x\n") == {"compute"}


def test_code_the_stage_does_not_name_does_not_count(package):
    assert (
        changed(package, "cca", "SCALE = 2\ndef core(x):\n    return SCALE * x\ndef unrelated(x):\n    return -x\n")
        == set()
    )


def test_plots_change_plots_alone(package):
    assert changed(package, "plots", "def draw(x):\n    return 2 * x\n") == {"plot"}


def test_an_entry_added_to_a_registry_reruns_nothing(package):
    source = """
        from cca_dynamics.cca import core
        def pwcca(x): return core(x)
        def cosine(x): return -x - 1
        def cka(x): return x
        MEASURES = {"pwcca": pwcca, "cosine": cosine, "cka": cka}
        """
    assert changed(package, "measures.all", source) == set()


def test_methods_count_where_a_type_hint_names_their_class(package):
    package("inputs", "class Inputs:\n    def read(self):\n        return 1\n")
    source = """
        from cca_dynamics.inputs import Inputs
        SCALE = 2
        def core(x: Inputs): return SCALE * x.read()
        """
    assert changed(package, "cca", source) == {"compute"}
    assert changed(package, "inputs", "class Inputs:\n    def read(self):\n        return 2\n") == {"compute"}


def test_the_schema_of_the_config_changes_nothing(package):
    package("config.models", "class Options:\n    size = 1\n")
    source = """
        from cca_dynamics.config.models import Options
        SCALE = 2
        def core(x): return SCALE * x if isinstance(x, Options) else x
        """
    assert changed(package, "cca", source) == {"compute"}
    assert changed(package, "config.models", "class Options:\n    size = 2\n") == set()


def test_a_log_line_and_the_words_of_an_error_change_nothing(package):
    source = """
        SCALE = 2
        def core(x, report=print):
            if x is None:
                report(f"{x} is wrong")
                raise ValueError(f"{x} is wrong")
            return SCALE * x
        """
    assert changed(package, "cca", source) == {"compute"}
    assert changed(package, "cca", source.replace("is wrong", "is missing")) == set()
    assert changed(package, "cca", source.replace("ValueError", "TypeError")) == {"compute"}


def test_a_data_file_that_a_definition_names_counts_with_its_content(package):
    source = """
        FILE = "values.csv"
        SCALE = 2
        def read(): return open(FILE)
        def core(x): return SCALE * x * len(read().read())
        """
    assert changed(package, "cca", source) == {"compute"}
    file = fingerprints.PACKAGE / "values.csv"
    for content in ("1", "2"):
        before = of_stages()
        file.write_text(content)
        fingerprints.forget()
        after = of_stages()
        assert {stage for stage in before if before[stage] != after[stage]} == {"compute"}
    assert changed(package, "cca", source.replace("values.csv", "others.csv")) == {"compute"}
    file.write_text("3")
    assert changed(package, "cca", source.replace("values.csv", "others.csv")) == set()


def test_a_variable_is_not_the_definition_of_its_name(package):
    package("other", "def plot(x): return x\ndef size(x): return x\n")
    source = """
        from cca_dynamics.other import plot, size
        SCALE = 2
        def core(x, plot=1):
            size = [size for size in x]
            return SCALE * len(size) * plot
        """
    assert changed(package, "cca", source) == {"compute"}
    assert changed(package, "other", "def plot(x): return -x\ndef size(x): return -x\n") == set()
    assert changed(package, "cca", source.replace("size = [", "sizes = [")) == {"compute"}
    assert changed(package, "other", "def plot(x): return x\ndef size(x): return x\n") == {"compute"}


def test_an_import_inside_a_function_counts_though_its_name_is_assigned_again(package):
    package("other", "def plot(x): return x\n")
    source = """
        SCALE = 2
        def core(x):
            from cca_dynamics.other import plot
            plot = plot if x else None
            return SCALE * plot(x)
        """
    assert changed(package, "cca", source) == {"compute"}
    assert changed(package, "other", "def plot(x): return -x\n") == {"compute"}


def test_keys_of_another_registry_do_not_count(package):
    keys = ["elsewhere:pwcca"]
    before = fingerprints.code_fingerprint("result:compute", selected=keys)
    package("measures.all", "def cosine(x): return x\nMEASURES = {'cosine': cosine}\n")
    assert fingerprints.code_fingerprint("result:compute", selected=keys) != before


SYNTAX = '''
"""Whatever versions of Python write differently in a syntax tree."""
import os, sys as system
from . import (a as b)
X: "int" = 0x1F + 1_000 + 1.5e-300 + 2j + -1
TEXTS = "\\u2028\\U0001F600" u"kind" "it's" "one" "two" """three
four"""
TEXTS = ["ü\\u2028\\U0001F600", u"kind", "it's", b"\\xff", "one" "two", ..., None, True]
F = f"{X}" f"{X!r:>{X}}" "literal" f"{X=}" f"{{}}" f"{\'a\'}{X:}" f"{X:{X}.{X}f}" rf"\\d{X}"
async def g(x, /, y: int = 1, *args, z=2, **more) -> None:
    async with x as y, z: await y
    async for i in x: yield i
    return [k async for k in y if k]
@decorate(1)
class C(B, metaclass=M):
    "Docstring."
    def f(self):
        "Docstring."
    x = lambda *, a=1: (yield)
match X:
    case [1, *rest] | {"k": v, **others} if (n := v): pass
    case C(x=1) as c: del c
    case -1 | None | "a": x[1:2, ..., ::3] = {**x, 1: {*y}}
    case _: print(*x, sep="", **y)
try: x @= not y
except* (A, B) as e: raise e from None
else: assert x, f"no {x}"
finally: (a, b), *c = d = yield_ = x if y else z
while True: break
else: "text"
for i, in x: continue
global q
x = 1 < 2 <= 3 is not None in y or (a and b) ** ~c // d
with (open("a") as f, open("b")): pass
'''


PRINT = """
import hashlib, sys
from pathlib import Path
from cca_dynamics.runtime import fingerprints
syntax = fingerprints.parse(sys.stdin.read(), messages=True)
print(hashlib.sha256(fingerprints.canonical(syntax).encode()).hexdigest()[:16])
for path in sorted(fingerprints.PACKAGE.rglob("*.py")):
    module = ".".join(path.relative_to(fingerprints.PACKAGE).with_suffix("").parts)
    for name in fingerprints._module(module).definitions if path.stem != "__init__" else ():
        print(module, name, fingerprints.code_fingerprint(f"{module}:{name}", selected=["similarity.measures:pwcca"]))
"""


def pythons() -> list[str]:
    """Other versions of Python on this machine that the project supports."""
    places = [Path(shutil.which(f"python3.{minor}") or "none") for minor in range(11, 15)]
    places += sorted((Path.home() / ".pyenv/versions").glob("3.1[1-4]*/bin/python"))
    versions = {}
    for place in filter(Path.exists, places):
        run = subprocess.run([place, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
        if run.returncode == 0:  # pyenv has stand-ins that refuse
            versions[run.stdout] = str(place)
    versions.pop(f"{sys.version_info[:2]}\n", None)
    return sorted(versions.values())


@pytest.mark.thorough
def test_fingerprints_are_the_same_under_every_version_of_python():
    """Every definition of the package, and a file of odd syntax whose fingerprint is written down here."""

    def printed(python: str) -> str:
        command = [python, "-W", "error", "-c", PRINT]
        environment = {"PYTHONPATH": str(ROOT / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, input=SYNTAX, env=environment, capture_output=True, text=True, check=True).stdout

    expected = printed(sys.executable)
    assert expected.splitlines()[0] == "9106e401f96b178e" and len(expected.splitlines()) > 700
    for python in pythons():
        assert printed(python) == expected, python


def test_captions_and_template_are_texts_of_the_report_and_its_modules_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "TEXTS", tmp_path)
    (tmp_path / "captions").mkdir()
    for name in ("captions/width.rst", "template.html", "page.py"):
        (tmp_path / name).write_text("text")
    before = fingerprints.texts_fingerprint()
    (tmp_path / "page.py").write_text("another")
    assert fingerprints.texts_fingerprint() == before
    for name in ("captions/width.rst", "template.html"):
        (tmp_path / name).write_text(f"another {name}")
        assert fingerprints.texts_fingerprint() != before
        before = fingerprints.texts_fingerprint()


def test_unknown_entry_is_an_error(package):
    with pytest.raises(KeyError, match="result:missing"):
        fingerprints.code_fingerprint("result:missing")


def test_stages_of_this_project_depend_on_what_they_should():
    """The promise to users, on the real code: similarity code is behind compute and behind nothing earlier or later."""

    def definitions(*entries):
        return {f"{module}:{name}" for module, name in fingerprints.definitions(entries)}

    train, compute = definitions("training.classifiers:train"), definitions("results.generalization:compute")
    plot = definitions("results.generalization:plot", "results.figures:save")
    assert {"networks.convolutional:Networks", "networks.architectures:ConvNet"} <= train and not any(
        name.startswith(("similarity", "figures", "results")) for name in train
    )
    assert {"similarity.cca:cca"} <= definitions("results.stability:compute")
    assert any(name.startswith("similarity.pairwise:") for name in compute)
    elsewhere = (
        "training.classifiers",
        "training.language_models",
        "training.optimizers",
        "results.figures",
        "results.claims",
    )
    assert not any(name.startswith(elsewhere) for name in compute)
    elsewhere = ("training", "representations", "results.inputs", "similarity.pairwise")
    assert "results.figures:panels" in plot and not any(name.startswith(elsewhere) for name in plot)
