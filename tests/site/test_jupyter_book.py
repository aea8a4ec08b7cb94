"""Jupyter Book 2: myst.yml says what book.toml says, and its engine reads every chapter."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import sample
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


def put_project(folder: Path, settings: str) -> Path:
    """What Jupyter Book 2 reads besides chapters, with the stub for a theme."""
    pages = (path.name for path in ROOT.glob("*.md"))
    for name in ("references.bib", "LICENSE", "CITATION.cff", *pages):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "site", folder / "site", dirs_exist_ok=True)
    assert settings.count("template: book-theme") == 1
    settings = settings.replace("template: book-theme", "template: ./stub")
    (folder / jupyter_book.FILE).write_text(settings, encoding="utf-8")
    (folder / "stub").mkdir()
    (folder / "stub/template.yml").write_text(STUB)
    return folder


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


def test_the_engine_reads_every_chapter_without_a_warning(tmp_path):
    shutil.copytree(ROOT / "chapters", tmp_path / "chapters")
    committed = (ROOT / jupyter_book.FILE).read_text(encoding="utf-8")
    said = read_by_engine(put_project(tmp_path, committed))
    assert re.findall("⚠|⛔|[Ww]arning|[Ee]rror", said) == [], said
    for each in manifest.load().chapters:
        assert f"Built chapters/{each.file}.ipynb" in said
    pages = list((tmp_path / "_build/site/content").glob("*.json"))
    assert len(pages) == len(manifest.load().chapters) + 2


def test_the_engine_tells_what_is_wrong(tiny):
    path = tiny / f"chapters/{sample.FIRST}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\n{eq}`eq-nowhere` [x](98_gone.ipynb) {cite}`nobody1900`"
    notebook.cells[0].source += "\n\n$\\nonsense x$"
    nbformat.write(notebook, path)
    said = read_by_engine(put_project(tiny, jupyter_book.config(manifest.load(tiny))))
    for place in ("eq-nowhere", "98_gone.ipynb", "nobody1900", "nonsense", path.name):
        assert place in said
