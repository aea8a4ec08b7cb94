"""Sphinx's settings for the book; `python -m tools.book.site` gathers the sources and runs it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.book import npm, sources, sphinx_book  # noqa: E402
from tools.study import manifest  # noqa: E402

book = manifest.load(ROOT)
project = html_title = book.title
author = ", ".join(book.authors)
language = book.language

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
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
bibtex_cite_id = sources.ANCHOR

nb_execution_mode = "off"  # chapters are committed with their outputs
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
add_module_names = False
python_maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

templates_path = ["templates"]
html_static_path = ["static"]
# Without it Sphinx takes MathJax from its own default address.
if npm.MATHJAX.home(ROOT).is_dir():
    html_static_path.append(str(npm.MATHJAX.home(ROOT)))
    mathjax_path = "mathjax/startup.js"
    # Not its menu: as heavy as half of the rest, and it makes a stop for Tab of every equation.
    components = ["core", "input/tex", "output/chtml", "a11y/assistive-mml"]
    mathjax3_config = {"loader": {"load": components}}

html_theme = "sphinx_book_theme"
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_favicon = "static/favicon.svg"
html_show_copyright = False
html_use_index = html_domain_indices = False  # the search finds more
html_context = {"default_mode": "auto"}
html_theme_options = {
    # The theme's own header would hold a second search bar.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "show_toc_level": 2,
}
if book.repository:
    html_theme_options |= {
        "repository_url": book.repository,
        "use_repository_button": True,
        "path_to_docs": "chapters",
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }


def setup(app):
    """Let the book's own pieces work with Sphinx."""
    sphinx_book.install(app, book, ROOT)
