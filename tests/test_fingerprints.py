"""The code fingerprint changes with the code a stage runs, and with nothing else."""

import textwrap

import pytest
from cca_dynamics.runtime import fingerprints


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of ours; returns a function that (re)writes a module of it."""
    root = tmp_path / "cca_dynamics"
    monkeypatch.setattr(fingerprints, "PACKAGE", root)

    def write(module: str, source: str) -> None:
        path = root.joinpath(*module.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(textwrap.dedent(source))
        fingerprints._module.cache_clear()
        fingerprints._exists.cache_clear()

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
    fingerprints._module.cache_clear()
    fingerprints._exists.cache_clear()


def of_stages():
    return {
        stage: fingerprints.code_fingerprint(f"result:{stage}", selected=["pwcca"]) for stage in ("compute", "plot")
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
        seen = {}
        fingerprints.code_fingerprint(*entries, collect=seen)
        return {f"{module}:{name}" for module, name in seen}

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
