"""`make book`: what it gathers, its one-line answers, and every fault by page and place."""

import importlib.util
import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import nbformat
import pytest
import sample
import yaml
from PIL import Image
from pygments.styles import get_style_by_name
from pygments.token import Token

from tools import ROOT, Refusal, bootstrap
from tools.book import lighter, npm, site
from tools.study import manifest

NOTEBOOK = f"chapters/{sample.NAME}.ipynb"


def book_of(*files: str) -> manifest.Book:
    chapters = [
        manifest.Chapter(file=file, title="", title_zh="", needs=(), seconds=1, minutes=1)
        for file in files
    ]
    return manifest.Book(title="", title_zh="", authors=(), language="en", chapters=tuple(chapters))


def test_chapters_stand_in_parts_by_their_tens():
    toc = site.table_of_contents(book_of("00_a", "11_b", "12_c", "61_d", "91_e"), ["api", "api-x"])
    parts = {part["caption"]: [page["file"] for page in part["chapters"]] for part in toc["parts"]}
    assert parts == {
        "Orientation": ["00_a"],
        "Text": ["11_b", "12_c"],
        "In practice": ["61_d"],
        "Appendix": ["91_e", "glossary", "bibliography"],
        "Around the course": ["api", "speed", "teach"],
    }
    assert toc["parts"][-1]["chapters"][0]["sections"] == [{"file": "api-x"}]


def test_the_book_is_built_and_its_place_is_told(course, said):
    index = course / "_build/html/index.html"
    pages = len(list((course / "_build/html").glob("*.html"))) - len(["search"])
    last = said["stdout"].splitlines()[-1]
    assert last.startswith(f"{pages} pages in ")
    assert last.endswith(f": {index}")
    assert index.is_file()
    assert (index.parent / "_images/sample.webp").is_file()


def test_numbers_begin_anew_in_each_chapter(course):
    html = (course / f"_build/html/{sample.NAME}.html").read_text(encoding="utf-8")
    numbers = re.findall(r'caption-number">(\w+\.? \d+)', html)
    assert numbers == ["Theorem 1", "Fig. 1", "Table 1", "Exercise 1"]
    assert re.findall(r'eqno">(\(\d+\))', html) == [f"({n})" for n in range(1, 8)]


def test_an_equation_of_another_chapter_is_linked(course):
    html = (course / f"_build/html/{sample.NAME}.html").read_text(encoding="utf-8")
    assert re.search(r'href="00_start_here.html#equation-eq-gibbs"><[^>]+>Gibbs’ inequality<', html)


def test_a_function_and_the_equation_that_it_computes_link_to_each_other(course):
    chapter = (course / "_build/html/20_elbo.html").read_text(encoding="utf-8")
    library = (course / "_build/html/api-objectives.html").read_text(encoding="utf-8")
    label = "equation-eq-gaussian-kl"
    number = re.search(rf'id="{label}">\s*<span class="eqno">\((\d+)\)', chapter)[1]
    assert f'href="20_elbo.html#{label}"><span class="std std-ref">chapter 20, ' in library
    assert f">chapter 20, equation ({number})<" in library
    after = chapter[chapter.index(f'id="{label}"') :]
    note = after[: after.index("</p>")]
    assert "In the library:" in note
    assert 'href="api-objectives.html#objectives-elbo-gaussian-kl"' in note


def test_every_warning_fails_the_build_and_names_the_place(fresh_course):
    faults = {
        "{eq}`eq-nowhere`": "equation not found: eq-nowhere",
        "{eq}`eq-gibbs`": "eq-gibbs stands on another page: link to it with [words](00_start_here.",
        "{prf:ref}`thm-gibbs`": "thm-gibbs stands on another page: link to it with [words](00_",
        "{ref}`the code <ex-code>`": "ex-code stands on another page: link to it with [words](00_",
        "{ref}`ex-underflow`": "ex-underflow stands on another page: link to it with [words](00_",
        ":::{nonsense}\n:::": "Unknown directive type: 'nonsense'",
        "[gone](98_gone.ipynb)": "98_gone.ipynb",
        "[gone](00_start_here.ipynb#eq-nowhere)": "local id not found in doc '00_start_here'",
        "$$\na\n$$ (eq-sample-gibbs)": "duplicate label of equation eq-sample-gibbs",
        "{cite}`nobody1900`": 'could not find bibtex key "nobody1900"',
        "![gone](results/gone.png)": "results/gone.png",
    }
    with edited(fresh_course) as notebook:
        notebook.cells[0].source += "\n\n" + "\n\n".join(faults)
    said = run_site(fresh_course)

    assert said.returncode == 1
    assert [message for message in faults.values() if message not in said.stderr] == []
    assert f"{sample.NAME}.ipynb:" in said.stderr
    assert said.stderr.splitlines()[-1].startswith("No book: ")
    assert "Traceback" not in said.stderr


OUTPUTS = {
    "a stored error": (
        nbformat.v4.new_output("error", ename="KeyError", evalue="'x'", traceback=[]),
        "an error is stored: KeyError: 'x'",
    ),
    "a missing glyph": (
        nbformat.v4.new_output("stream", name="stderr", text="Glyph 29109 missing from font"),
        "wrote to stderr: Glyph 29109 missing from font",
    ),
}


@pytest.mark.parametrize(("output", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_that_no_reader_should_see_stops_the_build(fresh_course, output, message):
    with edited(fresh_course) as notebook:
        cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
        cell.outputs.append(output)
        place = notebook.cells.index(cell) + 1
    refused = run_site(fresh_course).stderr
    assert refused == f"{NOTEBOOK}: cell {place} (# Solution: draw something): {message}\n"


def test_a_missing_chapter_is_one_line(fresh_course):
    (fresh_course / NOTEBOOK).unlink()
    said = run_site(fresh_course)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert NOTEBOOK in said.stderr


def test_missing_sphinx_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["site"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match="needs Sphinx: pip install"):
        site.main()


def test_the_book_is_served_on_request(tmp_path, monkeypatch, capsys):
    (tmp_path / "index.html").write_text("the book")
    serving = threading.Event()
    forever = site.http.server.ThreadingHTTPServer.serve_forever

    def once(server):
        serving.server = server
        serving.set()
        forever(server)

    monkeypatch.setattr(site.http.server.ThreadingHTTPServer, "serve_forever", once)
    thread = threading.Thread(target=site.serve, args=(tmp_path, 0))
    thread.start()
    assert serving.wait(30)
    address = capsys.readouterr().out.split()[0]
    port = int(address.rpartition(":")[2])
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.read() == b"the book"
    with pytest.raises(Refusal, match=f"Port {port} is not free"):
        site.serve(tmp_path, port)
    serving.server.shutdown()
    thread.join()


@pytest.mark.parametrize("repository", [None, "https://github.com/someone/book"])
def test_launch_buttons_appear_only_for_a_public_repository(monkeypatch, repository):
    book = manifest.load()
    found = manifest.Book(**{**vars(book), "repository": repository})
    monkeypatch.setattr(manifest, "load", lambda root: found)
    settings: dict = {"__file__": str(ROOT / "site/conf.py")}
    exec((ROOT / "site/conf.py").read_text(encoding="utf-8"), settings)
    assert ("launch_buttons" in settings["html_theme_options"]) == (repository is not None)
    assert settings["html_theme_options"].get("repository_url") == repository


def test_mathjax_is_the_course_s_own(course):
    if npm.MATHJAX.home(ROOT).is_dir():
        html = (course / f"_build/html/{sample.NAME}.html").read_text(encoding="utf-8")
        assert 'src="_static/mathjax/startup.js' in html


WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8"))
STEPS = WORKFLOW["jobs"]["book"]["steps"]


def test_the_workflow_publishes_what_make_book_writes():
    runs = [step["run"] for step in STEPS if "run" in step]
    assert runs == ["make book", "test -d _build/html/_static/mathjax"]
    places = [step.get("with", {}).get("path") for step in STEPS]
    assert [place for place in places if place] == ["_build/html"]
    kinds = [step.get("uses", step.get("run")).partition("@v")[0] for step in STEPS]
    assert kinds == [
        *("actions/checkout", "actions/setup-python", "actions/setup-node", *runs),
        *("actions/configure-pages", "actions/upload-pages-artifact", "actions/deploy-pages"),
    ]


def test_the_workflow_may_publish_and_nothing_else():
    assert WORKFLOW["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    assert WORKFLOW[True] == {"push": {"branches": ["main"]}, "workflow_dispatch": None}  # "on"
    job = WORKFLOW["jobs"]["book"]
    assert job["environment"]["name"] == "github-pages"
    assert job["environment"]["url"] == "${{ steps.deploy.outputs.page_url }}"
    assert STEPS[-1]["id"] == "deploy"
    python = next(step["with"]["python-version"] for step in STEPS if "python" in str(step))
    assert tuple(map(int, python.split("."))) >= bootstrap.OLDEST


def test_a_figure_has_its_caption(course):
    html = (course / f"_build/html/{sample.NAME}.html").read_text(encoding="utf-8")
    figure = re.search(r'<figure [^>]*id="figure-99-1">.*?</figure>', html, re.S)[0]
    assert re.search(r'<img alt="Figure[^>]* src="_images/\w+.(webp|png)"', figure)
    assert "<strong>Figure 99.1.</strong> A single pixel, which is blue, for <span" in figure
    assert html.count("A single pixel") == 1
    for chapter in manifest.load().chapters:
        html = (course / f"_build/html/{chapter.file}.html").read_text(encoding="utf-8")
        notebook = nbformat.read(chapter.notebook(), as_version=4)
        captions = [c.source for c in notebook.cells if c.source.startswith("**Figure ")]
        assert html.count("<figcaption>") == len(captions) > 0


def test_the_bibliography_says_where_a_source_is_used(course):
    html = (course / "_build/html/bibliography.html").read_text(encoding="utf-8")
    entry = html[html.index("Auto-encoding variational") :].partition('class="citation"')[0]
    assert 'href="20_elbo.html#sources"' in entry
    assert "Equation 3: " in entry
    assert 'href="api-objectives.html#objectives-elbo-elbo"' in entry
    assert re.search(r'href="20_elbo.html#equation-eq-three-forms">.*chapter 20, equation', entry)


def test_a_chapter_names_its_assignment(course):
    html = (course / f"_build/html/{sample.NAME}.html").read_text(encoding="utf-8")
    note = re.search('<p class="assignment">.*?</p>', html, re.S)[0]
    assert 'href="teach.html#assignments"' in note
    assert "What a pixel knows" in note
    assert "100 points, 105 minutes." in note
    teach = (course / "_build/html/teach.html").read_text(encoding="utf-8")
    assert "What a pixel knows" in teach
    assert not list((course / "_build/html").rglob("assignments*"))  # solutions stay out


# Weight


@pytest.fixture
def heavy(tmp_path):
    """A book of one page, with a picture, code and a style sheet."""
    for folder in ("_images", "_static/styles"):
        (tmp_path / folder).mkdir(parents=True)
    noise = Image.effect_noise((90, 60), 50).convert("RGBA")
    noise.putalpha(Image.linear_gradient("L").resize((90, 60)))
    noise.save(tmp_path / "_images/a.png")
    (tmp_path / "_static/styles/theme.css").write_text(
        '@charset "U";/* .gone{} */:root{--x:1}.used,.gone{a:b}.gone:is(.used,.x:not(.y)){c:d}'
        ".used:not(.gone,.x)>p,.bs-a-b{e:f}@media (x){.gone{g:h}.dynamic{i:j}}"
    )
    (tmp_path / "_static/a.js").write_text('add("dynamic")')
    (tmp_path / "page.html").write_text(
        '<p class="used"><img src="_images/a.png"/><span class="n">x</span>'
        '<span class="p">&lt;</span><span class="k">if</span>'
    )
    return tmp_path


def test_a_lighter_picture_has_the_same_pixels(heavy):
    before = Image.open(heavy / "_images/a.png").convert("RGBA").tobytes()
    lighter.lighten(heavy)
    assert [path.name for path in (heavy / "_images").iterdir()] == ["a.webp"]
    assert Image.open(heavy / "_images/a.webp").convert("RGBA").tobytes() == before
    assert '<img src="_images/a.webp"/>' in (heavy / "page.html").read_text()


def test_lighter_code_keeps_every_colour(heavy):
    lighter.lighten(heavy)
    assert '/>x&lt;<span class="k">if</span>' in (heavy / "page.html").read_text()


def test_names_and_punctuation_have_the_colour_of_the_code_around():
    for scheme in ("a11y-high-contrast-light", "a11y-high-contrast-dark"):
        style = dict(get_style_by_name(scheme))
        around = style[Token.Text]["color"]
        assert {style[kind]["color"] for kind in (Token.Name, Token.Punctuation)} == {around}


def test_a_lighter_style_sheet_keeps_what_can_match(heavy):
    lighter.lighten(heavy)
    assert (heavy / "_static/styles/theme.css").read_text() == (
        '@charset "U";:root{--x:1}.used{a:b}.used:not(.gone,.x)>p,.bs-a-b{e:f}'
        "@media (x){.dynamic{i:j}}"
    )


class edited:
    """The sample chapter of a course, written back at the end of a `with`."""

    def __init__(self, root: Path):
        self.path = root / NOTEBOOK

    def __enter__(self) -> nbformat.NotebookNode:
        self.notebook = nbformat.read(self.path, as_version=4)
        return self.notebook

    def __exit__(self, *_):
        nbformat.write(self.notebook, self.path)


def run_site(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.book.site"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
