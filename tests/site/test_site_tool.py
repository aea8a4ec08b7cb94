"""`make book`: what it gathers, its one-line answers, and every fault by page and place."""

import importlib.util
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
from tools.book import lighter, site
from tools.study import manifest

NOTEBOOK = f"chapters/{sample.NAME}.ipynb"


def book_of(*files: str) -> manifest.Book:
    chapters = [
        manifest.Chapter(
            file=file, title="", title_zh="", needs=(), seconds=1, minutes=1, minutes_all=2
        )
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


@pytest.fixture
def build(tiny, capsys):
    """Build the tiny course in this process: what was refused, and what Sphinx had to say."""

    def run() -> tuple[str, str]:
        with pytest.raises(Refusal) as refused:
            site.build(tiny)
        return str(refused.value), capsys.readouterr().err

    return run


FAULTS = {
    "{eq}`eq-nowhere`": "equation not found: eq-nowhere",
    "{eq}`eq-gibbs`": "eq-gibbs stands on another page: link to it with [words](00_start_here.",
    "{prf:ref}`thm-gibbs`": "thm-gibbs stands on another page: link to it with [words](00_",
    "{ref}`the code <ex-code>`": "ex-code stands on another page: link to it with [words](00_",
    ":::{nonsense}\n:::": "Unknown directive type: 'nonsense'",
    "[gone](98_gone.ipynb)": "98_gone.ipynb",
    "[gone](00_start_here.ipynb#eq-nowhere)": "local id not found in doc '00_start_here'",
    "$$\na\n$$ (eq-sample-gibbs)": "duplicate label of equation eq-sample-gibbs",
    "{cite}`nobody1900`": 'could not find bibtex key "nobody1900"',
    "![gone](results/gone.png)": "results/gone.png",
}


@pytest.mark.filterwarnings("default")
def test_every_warning_fails_the_build_and_names_the_place(tiny, build):
    with edited(tiny) as notebook:
        notebook.cells[0].source += "\n\n" + "\n\n".join(FAULTS)
    refused, said = build()
    assert refused.startswith("No book: ")
    assert [message for message in FAULTS.values() if message not in said] == [], said
    assert f"{sample.NAME}.ipynb:" in said
    others = [line for line in said.splitlines() if "WARNING" in line and sample.NAME not in line]
    assert others == []


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
def test_an_output_that_no_reader_should_see_stops_the_build(tiny, build, output, message):
    with edited(tiny) as notebook:
        cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
        cell.outputs.append(output)
        place = notebook.cells.index(cell) + 1
    assert build()[0] == f"{NOTEBOOK}: cell {place} (# Solution: draw something): {message}"


def test_a_missing_chapter_is_one_line(tiny, build):
    (tiny / NOTEBOOK).unlink()
    refused, said = build()
    assert NOTEBOOK in refused
    assert "\n" not in refused
    assert said == ""


def test_missing_sphinx_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["site"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match="needs Sphinx: pip install"):
        site.main()


def test_a_bad_port_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["site", "--serve", "abc"])
    with pytest.raises(Refusal, match="PORT is a number below 65536, got 'abc'"):
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


# Weight


@pytest.fixture
def heavy(tmp_path):
    """A book of one page, with a picture and code."""
    (tmp_path / "_images").mkdir()
    noise = Image.effect_noise((90, 60), 50).convert("RGBA")
    noise.putalpha(Image.linear_gradient("L").resize((90, 60)))
    noise.save(tmp_path / "_images/a.png")
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


class edited:
    """The sample chapter of a course, written back at the end of a `with`."""

    def __init__(self, root: Path):
        self.path = root / NOTEBOOK

    def __enter__(self) -> nbformat.NotebookNode:
        self.notebook = nbformat.read(self.path, as_version=4)
        return self.notebook

    def __exit__(self, *_):
        nbformat.write(self.notebook, self.path)
