"""`make book`: its table of contents, its one-line answers, MathJax whole or not at all."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest
import sample

from tools import ROOT, Refusal, manifest, site


def book_of(*files: str) -> manifest.Book:
    chapters = [
        manifest.Chapter(file=file, title="", title_zh="", needs=(), seconds=1, minutes=1)
        for file in files
    ]
    return manifest.Book(title="", title_zh="", authors=(), language="en", chapters=tuple(chapters))


def test_chapters_stand_in_parts_by_their_tens():
    toc = site.table_of_contents(book_of("00_a", "11_b", "12_c", "61_d", "91_e"))
    parts = {part["caption"]: [page["file"] for page in part["chapters"]] for part in toc["parts"]}
    assert parts == {
        "Orientation": ["00_a"],
        "Text": ["11_b", "12_c"],
        "In practice": ["61_d"],
        "Appendix": ["91_e", "bibliography"],
    }


def test_a_chapter_without_a_part_is_refused():
    with pytest.raises(Refusal, match="'71_a'"):
        site.table_of_contents(book_of("71_a"))


def test_the_first_page_has_the_titles_of_the_manifest():
    book = manifest.load()
    text = (ROOT / "site/index.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {book.title}\n")
    assert book.title_zh in text


def test_the_book_is_built_and_its_place_is_told(course, built):
    assert built.returncode == 0, built.stderr
    index = course / "_build/html/index.html"
    pages = len(list(course.glob("site/*.md"))) + len(manifest.load(course).chapters)
    last = built.stdout.splitlines()[-1]
    assert last.startswith(f"{pages} pages in ")
    assert last.endswith(f": {index}")
    assert index.is_file()
    assert (index.parent / "_images/sample.png").is_file()


def test_numbers_begin_anew_in_each_chapter(course, built):
    assert built.returncode == 0, built.stderr
    html = (course / f"_build/html/{sample.NAME}.html").read_text(encoding="utf-8")
    numbers = re.findall(r'caption-number">(\w+\.? \d+)', html)
    assert numbers == ["Theorem 1", "Fig. 1", "Table 1", "Exercise 1"]
    assert re.findall(r'eqno">(\(\d+\))', html) == [f"({n})" for n in range(1, 8)]


def test_every_warning_fails_the_build_and_is_shown(course, tmp_path):
    root = tmp_path / "course"
    shutil.copytree(course, root, ignore=shutil.ignore_patterns("_build"))
    faults = {
        "{eq}`eq-nowhere`": "equation not found: eq-nowhere",
        ":::{nonsense}\n:::": "Unknown directive type: 'nonsense'",
        "[gone](98_gone.ipynb)": "98_gone.ipynb",
        "$$\na\n$$ (eq-sample-gibbs)": "duplicate label of equation eq-sample-gibbs",
        "{cite}`nobody1900`": 'could not find bibtex key "nobody1900"',
        "![gone](results/gone.png)": "results/gone.png",
    }
    notebook = nbformat.read(root / f"chapters/{sample.NAME}.ipynb", as_version=4)
    notebook.cells[0].source += "\n\n" + "\n\n".join(faults)
    nbformat.write(notebook, root / f"chapters/{sample.NAME}.ipynb")
    said = run_site(root)

    assert said.returncode == 1
    assert [message for message in faults.values() if message not in said.stderr] == []
    assert said.stderr.splitlines()[-1].startswith("No book: ")
    assert "Traceback" not in said.stderr


def test_a_broken_manifest_and_missing_sphinx_are_one_line(course, tmp_path, monkeypatch):
    root = tmp_path / "course"
    shutil.copytree(course, root, ignore=shutil.ignore_patterns("_build"))
    (root / f"chapters/{sample.NAME}.ipynb").unlink()
    said = run_site(root)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert f"chapters/{sample.NAME}.ipynb" in said.stderr

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match="needs Sphinx: pip install"):
        site.main()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A program that packs a MathJax of its own; what it was asked is in `asked`."""
    package = tmp_path / "package/es5"
    for file in ("tex-mml-chtml.js", "output/chtml/fonts/tex.css", "input/tex/extensions/ams.js"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(file)
    (package / "unneeded.js").write_text("")
    script = tmp_path / "bin/npm"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntar czf mathjax.tgz -C {tmp_path} package\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return script


def test_mathjax_is_fetched_once(npm, tmp_path):
    home = site.mathjax(tmp_path)
    assert site.mathjax(tmp_path) == home == tmp_path / "build/mathjax-3.2.2"
    files = {str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()}
    assert files == {
        "mathjax/tex-mml-chtml.js",
        "mathjax/output/chtml/fonts/tex.css",
        "mathjax/input/tex/extensions/ams.js",
    }
    assert (tmp_path / "asked").read_text().count("pack mathjax@3.2.2") == 1
    assert list((tmp_path / "build").iterdir()) == [home]


def test_half_a_mathjax_is_never_kept(npm, tmp_path, monkeypatch):
    extract = tarfile.TarFile.extract

    def extract_one(archive, member, *args, **options):
        extract(archive, member, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extract", extract_one)
    with pytest.raises(KeyboardInterrupt):
        site.mathjax(tmp_path)
    assert list((tmp_path / "build").iterdir()) == []


def test_without_mathjax_there_is_no_folder(npm, tmp_path, monkeypatch):
    npm.write_text("#!/bin/sh\nexit 1\n")
    assert site.mathjax(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert site.mathjax(tmp_path) is None
    assert list((tmp_path / "build").iterdir()) == []


def run_site(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.site"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
