"""Jupyter Book 2: myst.yml says what book.toml says, and its engine reads every chapter."""

import os
import re
import shutil
import subprocess

import nbformat
import pytest
import yaml
from browsing import unavailable
from test_pages import SMALL

from tools import ROOT
from tools.book import jupyter_book, npm
from tools.study import manifest

# The real theme would come from the network; this one takes what the engine makes of the pages.
STUB = """
jtex: v1
title: Stub
version: 1.0.0
build: {install: "true", start: "true"}
options:
  - {type: file, id: favicon}
"""


def test_the_committed_file_is_what_the_manifest_says():
    committed = (ROOT / jupyter_book.FILE).read_text(encoding="utf-8")
    assert committed == jupyter_book.config(manifest.load()), "python -m tools.book.jupyter_book"


def test_every_chapter_stands_in_its_part():
    project = yaml.safe_load(jupyter_book.config(SMALL))["project"]
    assert "github" not in project
    assert (project["title"], project["subtitle"]) == (SMALL.title, SMALL.title_zh)
    assert [part.get("title") for part in project["toc"]] == [
        *(None, "Orientation", "Text", "Latent variables", "Diffusion", "Appendix"),
    ]
    assert project["toc"][2]["children"] == [
        {"file": "chapters/11_b.ipynb"},
        {"file": "chapters/12_c.ipynb"},
    ]
    public = manifest.Book(**vars(SMALL) | {"repository": "https://github.com/a/b"})
    assert "github: https://github.com/a/b" in jupyter_book.config(public)


@pytest.fixture
def project(tmp_path):
    """What Jupyter Book 2 reads of the course, with the stub for a theme."""
    for name in ("chapters", "site"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in (
        "references.bib",
        *(path.name for path in ROOT.glob("*.md")),
        "LICENSE",
        "CITATION.cff",
    ):
        shutil.copy(ROOT / name, tmp_path)
    text = (ROOT / jupyter_book.FILE).read_text(encoding="utf-8")
    assert text.count("template: book-theme") == 1
    text = text.replace("template: book-theme", "template: ./stub")
    (tmp_path / jupyter_book.FILE).write_text(text, encoding="utf-8")
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/template.yml").write_text(STUB)
    return tmp_path


def read_by_engine(project) -> str:
    """What MyST's engine says of the project, without a network."""
    home, node = npm.fetch(npm.MYST, ROOT), shutil.which("node")
    if home is None or node is None:
        unavailable("no mystmd: node or npm is missing, or had no network")
    line = [node, str(home / "mystmd/dist/myst.cjs"), "build", "--site", "--strict", "--ci"]
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    said = subprocess.run(
        line,
        cwd=project,
        env=os.environ | nowhere | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return said.stdout


def test_the_engine_reads_every_chapter_without_a_warning(project):
    said = read_by_engine(project)
    assert re.findall("⚠|⛔|[Ww]arning|[Ee]rror", said) == [], said
    for each in manifest.load().chapters:
        assert f"Built chapters/{each.file}.ipynb" in said
    pages = list((project / "_build/site/content").glob("*.json"))
    assert len(pages) == len(manifest.load().chapters) + 2


def test_the_engine_tells_what_is_wrong(project):
    path = next(iter(manifest.load().chapters)).notebook(project)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\n{eq}`eq-nowhere` [x](98_gone.ipynb) {cite}`nobody1900`"
    nbformat.write(notebook, path)
    said = read_by_engine(project)
    for place in ("eq-nowhere", "98_gone.ipynb", "nobody1900", path.name):
        assert place in said
