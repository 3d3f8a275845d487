"""How `make docs` renders this folder: Markdown by MyST, docstrings by autodoc, generated pages by `generate.py`."""

import re
import sys
from pathlib import Path

from pygments.lexers import PythonLexer

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "workflow")]

project = "cca-dynamics"
author = "the authors of cca-dynamics"
html_title = project
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_copy_source = False

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

default_role = "code"  # docstrings write names in single backticks, as Markdown does
autodoc_typehints = "none"  # docstrings say what arguments are
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_param = False


def write_pages(app):
    """Before Sphinx looks for pages: those that follow from the code."""
    import generate

    for name, text in generate.pages().items():
        path = HERE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def plain(app, what, name, obj, options, lines):
    """Bars in docstrings are absolute values, underscores subscripts; reStructuredText would read markup."""
    lines[:] = [re.sub(r"(\||(?<=_)\*|\*\*|(?<= )\*(?=,))", r"\\\1", line) for line in lines]


def outside(app, page, source):
    """Markdown files outside this folder are files to Sphinx, not pages."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def setup(app):
    """Sphinx calls this."""
    app.add_lexer("snakemake", PythonLexer)
    app.connect("source-read", outside)
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", plain)
