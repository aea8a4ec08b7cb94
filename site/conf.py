"""Sphinx's settings for the book. `python -m tools.site` gathers the sources and runs Sphinx."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import manifest  # noqa: E402
from tools.site import MATHJAX  # noqa: E402

book = manifest.load(ROOT)
project = html_title = book.title
author = ", ".join(book.authors)
language = book.language

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_exercise",
    "sphinx_external_toc",
    "sphinx_proof",
    "sphinx_togglebutton",
    "sphinxcontrib.bibtex",
]
external_toc_path = "_toc.json"
bibtex_bibfiles = [str(ROOT / "references.bib")]

nb_execution_mode = "off"  # chapters are committed with their outputs
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]

html_static_path = ["static"]
# Without it Sphinx takes MathJax from its own default address.
if (ROOT / "build" / f"mathjax-{MATHJAX}").is_dir():
    html_static_path.append(str(ROOT / "build" / f"mathjax-{MATHJAX}"))
    mathjax_path = "mathjax/tex-mml-chtml.js"

html_theme = "sphinx_book_theme"
html_css_files = ["book.css"]
html_favicon = "static/favicon.svg"
html_show_copyright = False
html_context = {"default_mode": "light"}
html_theme_options = {
    # The theme's own header would hold a second search bar.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "show_toc_level": 2,
}


def number_anew(app, env):
    """Count each page's equations, theorems, exercises and figures from one, as JupyterLab does."""
    for kinds in env.toc_fignumbers.values():
        for numbers in kinds.values():
            for place, label in enumerate(numbers, 1):
                numbers[label] = (place,)
    return []  # no page needs to be read again


def setup(app):
    """Let `number_anew` follow Sphinx's own numbering, which runs through the whole book."""
    app.connect("env-get-updated", number_anew, priority=900)
