"""The generated pages, one by one, from small books and files that hold one thing each."""

import inspect
import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import nbformat
import pytest
import sample
from docutils import nodes
from docutils.core import publish_doctree
from pybtex.database import Entry, Person, parse_file

from aigc_lib.objectives import likelihood
from tools import ROOT, Refusal
from tools.book import (
    api,
    course_map,
    docstrings,
    figures,
    front,
    glossary,
    library,
    sources,
    speed,
    teach,
)
from tools.book.assignments import Assignment, read
from tools.book.parts import PARTS, chapters_of, path_to, short_title
from tools.book.search import EnglishAndChinese
from tools.study import manifest


def chapter(file, *needs, minutes=90, **more):
    more |= {"title": f"Title {file[:2]}: and more", "title_zh": "题", "minutes_all": 150}
    return manifest.Chapter(file=file, needs=needs, seconds=9, minutes=minutes, **more)


def book_of(*chapters):
    return manifest.Book(
        title="T", title_zh="书", authors=("A",), language="en", chapters=tuple(chapters)
    )


SMALL = book_of(
    chapter("00_a"),
    chapter("11_b", "00_a"),
    chapter("12_c", "00_a", "11_b"),
    chapter("20_d", "00_a"),
    chapter("40_e", "12_c", "20_d", minutes=120),
)


# Parts and paths


def test_every_chapter_stands_in_the_part_of_its_first_digit():
    found = {key: [c.file for c in chapters] for key, chapters in chapters_of(SMALL).items()}
    assert list(found) == list(PARTS)
    assert {key: files for key, files in found.items() if files} == {
        "0": ["00_a"],
        "1": ["11_b", "12_c"],
        "2": ["20_d"],
        "4": ["40_e"],
    }
    with pytest.raises(Refusal, match="'71_a': there is no part"):
        chapters_of(book_of(chapter("71_a")))


def test_a_path_holds_all_needs_before_what_needs_them():
    files = [c.file for c in path_to(SMALL, SMALL.chapters[-1])]
    assert files == ["00_a", "11_b", "12_c", "20_d", "40_e"]
    assert [c.file for c in path_to(SMALL, SMALL.chapters[3])] == ["00_a", "20_d"]


def test_a_short_title_has_neither_article_nor_explanation():
    titles = {
        "The ELBO: a bound": "ELBO",
        "GPT: one": "GPT",
        "The variational one": "Variational one",
    }
    for title, short in titles.items():
        assert short_title(manifest.Chapter(**vars(chapter("00_a")) | {"title": title})) == short


# The map


def test_the_map_has_every_part_every_chapter_and_no_arrow_twice():
    picture = course_map.svg(SMALL)
    svg = ElementTree.fromstring(picture)
    links = [link.get("href") for link in svg.iter("a")]
    assert links == [f"{c.file}.html" for c in SMALL.chapters]
    text = " ".join(svg.itertext())
    for key, part in PARTS.items():
        if key != "9":
            assert part.title_zh in text
            assert (f"planned: {part.builds}" in text) == (key not in "0124")
    assert picture.count('class="row planned"') == 3
    # 12 needs 00 by way of 11; that arrow is implied.
    assert picture.count('class="need"') == 5
    assert "\n\n" not in picture


def test_nothing_on_the_map_is_outside_or_overlaps():
    many = book_of(*(chapter(f"1{n}_x") for n in range(9)))
    for book in (SMALL, many, manifest.load()):
        svg = ElementTree.fromstring(course_map.svg(book))
        _, _, width, height = map(float, svg.find("svg").get("viewBox").split())
        boxes = [box for box in svg.iter("rect") if box.get("class") == "box"]
        spans = [[float(box.get(k)) for k in ("x", "y", "width", "height")] for box in boxes]
        rows = [row for row in svg.iter("rect") if row.get("class").startswith("row")]
        sides = [(float(row.get("y")), float(row.get("height"))) for row in rows]
        assert sides[-1][0] + sides[-1][1] <= height
        for place, (x, y, w, h) in enumerate(spans):
            assert x >= course_map.LABEL
            assert x + w <= width
            top, tall = sides[list(PARTS).index(book.chapters[place].number[0])]
            assert top <= y
            assert y + h <= top + tall
            for x2, y2, _, _ in spans[:place]:
                assert y2 != y or x2 + w <= x


# The front page


def test_the_front_page_is_filled_in():
    template = "# <!-- title --> <!-- title_zh -->\n<!-- builds -->\n[x](<!-- first -->.ipynb)"
    text = front.page(SMALL, template)
    assert text.startswith("# T 书\n")
    assert f"- **Diffusion**: {PARTS['4'].builds}\n" in text
    assert f"- **Adversarial**: {PARTS['3'].builds} *(planned)*" in text
    assert text.endswith("[x](00_a.ipynb)")
    assert "Appendix" not in text
    with pytest.raises(Refusal, match=r"<!-- maps -->: known are title"):
        front.page(SMALL, "<!-- maps -->")


def test_the_way_to_a_model_is_told_with_its_hours():
    assert teach.goals(SMALL).splitlines()[2:] == [
        "| Title 40 | [00](00_a.ipynb) → [11](11_b.ipynb) → [12](12_c.ipynb) → "
        "[20](20_d.ipynb) → [40](40_e.ipynb) | 8 |"
    ]


# Teach with it


@pytest.mark.parametrize("length", teach.LENGTHS)
def test_a_syllabus_teaches_every_stage_once_and_in_order(length):
    for book in (SMALL, manifest.load()):
        plan = teach.weeks(list(book.chapters), length)
        taught = [pair for week in plan for pair in week]
        assert len(plan) == length
        assert taught == [(c, stage) for c in book.chapters for stage in teach.STAGES]
        loads = [sum(c.minutes / 3 for c, _ in week) for week in plan]
        assert max(loads) - min(loads) <= max(c.minutes for c in book.chapters)


def test_a_short_term_takes_from_every_part_and_never_without_needs():
    chosen = teach.selection(SMALL, 3)
    assert [c.file for c in chosen] == ["00_a", "11_b", "20_d"]
    assert teach.selection(SMALL, 5) == list(SMALL.chapters)
    shuffled = book_of(*reversed(SMALL.chapters))
    for count in range(1, 6):
        chosen = teach.selection(shuffled, count)
        assert len(chosen) <= count
        for place, each in enumerate(chosen):
            assert set(each.needs) <= {c.file for c in chosen[:place]}


def test_the_teaching_page_names_weeks_times_and_assignments():
    template = (ROOT / "site/teach.md").read_text(encoding="utf-8")
    works = {"00_a": Assignment("Look", 5, 100, 120)}
    text = teach.page(book_of(chapter("00_a", assignment="00_a")), works, template)
    for length in teach.LENGTHS:
        assert f"## {length} weeks" in text
    assert "[00 Title 00](00_a.ipynb): lab | 30 | — |" in text
    assert text.count("[00 Title 00](00_a.ipynb): exercises | 30 | 120 |") == len(teach.LENGTHS)
    assert "| what is still open | 0 | — |" in text
    assert "| [00 Title 00](00_a.ipynb) | Look | 5 | 100 | 120 |" in text
    assert "| [00 Title 00](00_a.ipynb) | Orientation | — | 90 | 150 | 9 |" in text
    assert "<!--" not in text
    long = book_of(*(chapter(f"1{n}_x") for n in range(10)), chapter("20_y"), chapter("30_z"))
    assert "left out" not in teach.page(long, {}, template)
    assert "There are none yet." in teach.page(long, {}, template)
    longer = book_of(*long.chapters, chapter("40_z"))
    assert "12 chapters from all parts; 1 are left out." in teach.page(longer, {}, template)
    with pytest.raises(Refusal, match=r"site/teach.md: <!-- weeks -->: known are stages"):
        teach.page(long, {}, "<!-- weeks -->")


def test_an_assignment_is_read_from_its_first_cell(tmp_path):
    sample.put(tmp_path)
    book = book_of(chapter("00_a"), chapter(sample.NAME, assignment=sample.NAME))
    assert read(book, tmp_path) == {sample.NAME: Assignment("What a pixel knows", 2, 100, 105)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# Assignment 99.", "# Assignment 98.", "expected a line '# Assignment 99. Title'"),
        ("| 60 |", "| 50 |", "of 100 points"),
        ("| 45 |", "| some |", "of 100 points"),
    ],
)
def test_an_assignment_that_says_something_else_is_refused(tmp_path, old, new, message):
    sample.put(tmp_path)
    path = tmp_path / f"assignments/{sample.NAME}/{sample.NAME}.ipynb"
    path.write_text(path.read_text().replace(old, new))
    book = book_of(chapter(sample.NAME, assignment=sample.NAME))
    with pytest.raises(Refusal, match=rf"99_sample.ipynb: the first cell: .*{message}"):
        read(book, tmp_path)


# Speed

ROW = {
    "op": "norm",
    "case": "N 2 | C 3",
    "direction": "forward",
    "arm": "torch",
    "peer": "eager",
    "ratio": 2.0,
    "low": 1.8,
    "high": 2.2,
    "noise": [0.9, 1.1],
    "milliseconds": 1.25,
    "peer_milliseconds": 2.5,
    "floor": {"ratio": 1.5},
    "refused": None,
    "meets": True,
}
RACE = {
    "date": "2026-01-02",
    "device": "Fast GPU",
    "capability": [9, 0],
    "threads": 2,
    "quick": False,
    "versions": {"torch": "2", "triton": "3", "liger-kernel": None},
    "missing": [],
    "ops": {
        "norm": {
            "command": "python -m bench",
            "complete": True,
            "ceilings": {
                "copy_gigabytes_per_second": 7,
                "matmul_teraflops": 8,
                "matmul": "small",
            },
            "rows": [ROW],
        }
    },
}


def speed_page(tmp_path, **changed):
    folder = tmp_path / "bench/results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "one.json").write_text(json.dumps({**RACE, **changed}))
    return speed.page(tmp_path)


def with_row(**changed):
    return {"norm": {**RACE["ops"]["norm"], "rows": [{**ROW, **changed}]}}


def test_a_result_is_shown_with_device_date_and_floor(tmp_path):
    text = speed_page(tmp_path)
    assert "## Ops: Fast GPU, 2026-01-02" in text
    assert "Fast GPU, capability 9.0; 2 threads." in text
    assert r"| N 2 \| C 3 | forward | torch | 1.25 | eager | 2.5 | 2.00 [1.80, 2.20] " in text
    assert "| ratio 1.5: met |" in text
    assert "GPUs" not in text
    assert "Peers not installed for `one.json`:** liger-kernel." in text


def test_what_is_lost_or_untold_is_said(tmp_path):
    assert "ratio 1.5: **not met**" in speed_page(tmp_path, ops=with_row(meets=False))
    assert "~1 [0.80, 2.20]" in speed_page(tmp_path, ops=with_row(low=0.8))
    assert "| layer_norm: N 2" in speed_page(tmp_path, ops=with_row(op="layer_norm"))
    refused = speed_page(tmp_path, ops=with_row(refused={"torch": "wrong"}))
    assert "| — | eager | — | not timed: torch: wrong |" in refused
    assert "1 rows say 'not timed'" in refused
    assert "decode (not run)" in speed_page(tmp_path, missing=["decode"])
    stopped = {"norm": {**RACE["ops"]["norm"], "complete": False}}
    assert "norm (stopped)" in speed_page(tmp_path, ops=stopped)
    assert "- **GPUs.** No file comes from one." in speed_page(tmp_path, capability=None)
    assert "A quick trial" in speed_page(tmp_path, quick=True)


def test_every_row_of_every_committed_result_is_on_the_page():
    text = speed.page(ROOT)
    for file in (ROOT / "bench/results").glob("*.json"):
        result = json.loads(file.read_text(encoding="utf-8"))
        section = text[: text.index(f"bench/results/{file.name}")]
        assert section.rstrip().endswith("**File:** `")
        rest = text[len(section) :].partition("\n## ")[0]
        rows = [line for line in rest.splitlines() if re.match(r"\| (?!:|-)", line)]
        tables = rest.count("\n| case |") + rest.count("\n| text |") + rest.count("\n| arm |")
        expected = result.get("ops", {}).values()
        count = sum(len(op["rows"]) for op in expected)
        count += len({(r.get("corpus"), r["arm"]) for r in result.get("rows", [])})
        assert len(rows) == count + tables


# The library

MODULE = '''"""A module.

    an indented map

Words.
"""

import torch

Numbers = Float[Tensor, "B *Z"]


def public(x: Numbers, *, beta: float = 1.0) -> Numbers:
    """L = β Σ_i x_i,   in nats.

    What * it_is.

    Source: Somebody 1999,
    equation 3.
    Derived: 00_start_here eq-gibbs
    """
    return beta * x


def _private(): pass


class Config:
    """Settings.

    Source: Somebody 1999.
    Derived: —
    """

    width: int = 3

    def steps(self, n: int) -> int:
        """How many."""
        return n
'''


@pytest.fixture
def little(tmp_path):
    """A library with one module in one part, one that stands alone, and a kernel."""
    for file, text in {
        "__init__.py": '"""The map."""',
        "ops/__init__.py": '"""Ops."""',
        "ops/norm.py": MODULE,
        "train.py": '"""Train."""\n\n\ndef run():\n    """Go | on."""\n',
        "kernels/norm/fast.py": '"""K."""\n\n\ndef launch():\n    """Hidden."""\n',
    }.items():
        (tmp_path / "aigc_lib" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "aigc_lib" / file).write_text(text, encoding="utf-8")
    return tmp_path


def test_everything_public_is_found_but_no_kernel(little):
    public, config, steps, run = library.entries(little)
    assert (public.name, config.name, steps.name) == ("public", "Config", "Config.steps")
    assert (public.anchor, public.page) == ("aigc_lib.ops.norm.public", "api-ops")
    assert (run.anchor, run.page) == ("aigc_lib.train.run", library.SINGLE)
    assert (public.source, public.derived) == (
        "Somebody 1999, equation 3",
        ("00_start_here", "eq-gibbs"),
    )
    assert (config.source, config.derived) == ("Somebody 1999", None)
    assert (run.source, run.derived) == ("", None)


def test_a_part_has_a_page_and_the_overview_names_formula_and_derivation(little):
    pages = api.pages(little)
    assert list(pages) == ["api", "api-ops", "api-single"]
    modules = re.findall(r".. automodule:: (.+)\n(?:   :members:)?", pages["api-ops"])
    assert modules == ["aigc_lib.ops", "aigc_lib.ops.norm"]
    assert pages["api-ops"].count("   :members:") == 1
    assert "## train\n" in pages["api-single"]
    row = r"| [`norm.public`](#aigc_lib.ops.norm.public) | L = β Σ\_i x\_i,   in nats. | "
    assert row + "[](00_start_here.ipynb#eq-gibbs) |" in pages["api"]
    assert r"| [`train.run`](#aigc_lib.train.run) | Go \| on. | — |" in pages["api"]


def told(docstring, what="method", obj=None, repository=None):
    """What autodoc reads in place of a docstring."""
    book = SimpleNamespace(repository=repository)
    bib = SimpleNamespace(bibdata=SimpleNamespace(data=SimpleNamespace(entries=KNOWN)))
    app = SimpleNamespace(
        config=SimpleNamespace(book=book), env=SimpleNamespace(get_domain={"cite": bib}.get)
    )
    lines = docstring.splitlines()
    docstrings.show(app, what, "name", obj, {}, lines)
    return "\n".join(lines)


def test_formula_source_and_derivation_are_shown():
    text = told(
        "L = β Σ_i x_i,   in `nats`.\n\nWhat * it_is.\n\n    a map\n\n"
        "Source: Post 2018,\nequation 3.\nDerived: 00_a eq-b"
    )
    assert ".. container:: formula\n\n   L = β Σ\\_i x\\_i,   in \\ ``nats``\\ .\n" in text
    assert "\nWhat \\* it\\_is.\n" in text
    assert "\n.. code-block:: text\n\n    a map\n" in text
    link = "\\ `Post 2018 <bibliography.html#cite-one>`__\\ , equation 3"
    assert f"\n**Source** {link}\n" in text
    assert "\n**Derived** in :ref:`00_a eq-b`\n" in text
    assert "**" not in told("A model.\n\nSource: —\nDerived: —")


def test_code_is_shown_without_docstring_and_linked_where_it_is_public():
    public = "https://github.com/a/b"
    text = told("What.", "function", manifest.find, public)
    first = inspect.getsourcelines(manifest.find)[1]
    assert f"/manifest.py <{public}/blob/HEAD/" in text
    assert f"#L{first}>`__" in text
    assert "      def find(book: Book, name: str) -> Chapter:\n          for chapter" in text
    assert "blob" not in told("What.", "function", manifest.find)
    assert told("What.", "method", manifest.find) == "What.\n"


def test_only_what_the_library_names_is_shown():
    kept = [
        name
        for name, obj in vars(likelihood).items()
        if docstrings.skip(None, "module", name, obj, False, {}) is None
    ]
    own = [e.name for e in library.entries(ROOT) if e.module == likelihood.__name__]
    assert set(own) <= set(kept)
    assert not {"Float", "Tensor", "torch", "math"} & set(kept)
    assert docstrings.skip(None, "class", "size", property(), False, {}) is None


def test_formulas_are_told_from_sentences():
    assert docstrings.is_formula("z = μ + σ ε,   σ = exp(½ log σ²).")
    assert docstrings.is_formula("x ← x + mlp(norm(x))")
    assert not docstrings.is_formula("With z ~ q(z|x) its expectation is the bound.")
    assert not docstrings.is_formula("U = E if tied. Logits depend on tokens before.")
    assert not docstrings.is_formula("Nothing is averaged.")


def test_the_equation_of_every_function_is_known():
    found = library.derivations(library.entries(ROOT))
    names = [entry.name for entry in found["20_elbo", "eq-gaussian-kl"]]
    assert "gaussian_kl" in names
    files = {c.file for c in manifest.load().chapters}
    assert {file for file, _ in found} <= files
    anchors = [entry.anchor for entry in library.entries(ROOT)]
    assert len(anchors) == len(set(anchors))


# Sources


def source(year, *authors):
    return Entry("misc", {"year": year}, {"author": [Person(name) for name in authors]})


KNOWN = {
    "two": source("2014", "Kingma, Diederik P.", "Welling, Max"),
    "four": source("2014", "Kingma, D.", "Rezende, D.", "Mohamed, S.", "Welling, M."),
    "one": source("2018", "Post, Matt"),
    "others": source("2021", "Elhage, Nelson", "others"),
    "accent": source("2010", "Ross, St{é}phane", "Bagn{è}ll, J."),
    "twin": source("2010", "Ross, S.", "Bagnell, D."),
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Kingma and Welling 2014, equation 3.", [("two", "equation 3")]),
        ("Kingma et al. 2014, equations 2 and 6; start: x.", [("four", "equations 2 and 6")]),
        (
            "β: Kingma and Welling 2014, section 2 (Post 2018).",
            [("two", "section 2"), ("one", "")],
        ),
        ("Post 2018, figure 1, of Elhage et al. 2021.", [("one", "figure 1"), ("others", "")]),
        ('Post 2018, section 3: "G(z; θ), where".', [("one", "section 3")]),
        ("Post 2018, section 3 (which; there).", [("one", "section 3")]),
        ("Post 2018, `g(x)` of equation 7 (twice).", [("one", "`g(x)` of equation 7 (twice)")]),
        ("Post 2019; Kingma 2014; Welling and Kingma 2014; Elhage 2021.", []),
        ("Ross, Bagnell 2010, theorem 2.", []),  # two sources fit
        ("as for `load`.", []),
    ],
)
def test_a_source_is_found_by_its_authors_and_year(text, found):
    assert list(sources.cited(text, KNOWN)) == found


def test_what_a_source_says_of_several_is_linked_to_each():
    text = sources.linked("A_b: Post 2018, of Elhage et al. 2021; Post 2019.", KNOWN, "<{}>".format)
    one, two = (f"bibliography.html#cite-{key}" for key in ("one", "others"))
    assert text == (
        rf"<A_b: >\ `Post 2018 <{one}>`__\ <, of >\ `Elhage et al. 2021 <{two}>`__\ <; Post 2019.>"
    )


def test_accents_and_braces_make_no_other_author():
    assert sources.surnames(KNOWN["accent"]) == ["ross", "bagnell"]


def test_functions_are_listed_under_their_sources():
    known = parse_file(ROOT / "references.bib").entries
    found = sources.by_source(library.entries(ROOT), known)
    used = {(entry.name, place) for entry, place in found["kingma2014"]}
    assert ("elbo", "equation 3") in used
    assert ("gaussian_kl", "appendix B, for m = 0 and s = 1") in used
    assert {entry.name for entry, _ in found["kingma2014b"]} == {"VAE"}


# Figures, glossary, search


def test_a_figure_is_told_in_words():
    code = 'fig, axes = plotting.panels(["true", f"model {n}"])\naxes[0].set_xlabel("x")\nf("no")'
    assert figures.figure_text(code) == "Figure: true; model …"
    assert figures.figure_text("%magic") == "Figure drawn by the code above"


def entry(heading, meaning):
    item = nodes.definition_list_item()
    item += [nodes.term("", heading), nodes.definition("", nodes.paragraph("", meaning))]
    return item


def glossary_of(*entries):
    document = publish_doctree("")
    document += nodes.definition_list("", *(entry(*each) for each in entries))
    return document


def test_terms_are_linked_at_their_first_use_only():
    document = glossary_of(
        ("entropy, Bayes' rule · 熵", "A mean."),
        ("cross · 十字", "Shorter than the next."),
        ("cross-entropy · 交叉熵", "B."),
    )
    found = glossary.terms(document)
    assert found[0] == ("term-entropy", ("entropy", "Bayes' rule"), "熵 · A mean.")
    assert glossary.terms(document) == found
    page = publish_doctree(
        "Entropy\n=======\n\n= =\na entropy\n= =\n\n"
        "``entropy`` Cross-entropy, entropies; *Bayes’ rule* and entropy."
    )
    glossary.link_first_uses(page, found, "g.html")
    links = [(r.astext(), r["refuri"], r["reftitle"]) for r in page.findall(nodes.reference)]
    assert links == [
        ("Cross-entropy", "g.html#term-cross-entropy", "交叉熵 · B."),
        ("Bayes’ rule", "g.html#term-entropy", "熵 · A mean."),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("entropy", "A.")], "expected 'term · 中文', got 'entropy'"),
        ([("entropy · entropy", "A.")], "expected 'term · 中文'"),
        ([("a · 一", "A."), ("b, a · 二", "B.")], "'b, a · 二' is there twice"),
    ],
)
def test_a_bad_entry_of_the_glossary_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        glossary.terms(glossary_of(*entries))


def test_chapters_and_glossary_give_a_term_the_same_chinese_name():
    lines = (ROOT / "site/glossary.md").read_text(encoding="utf-8").splitlines()
    entries = [line.split(" · ") for line in lines if " · " in line]
    chinese = {name: zh for names, zh in entries for name in names.split(", ")}
    compared = 0
    for each in manifest.load().chapters:
        for cell in nbformat.read(each.notebook(), as_version=4).cells:
            bold = re.findall(r"\*\*([\w –'-]+)\*\* \(([^()]*[\u4e00-\u9fff][^()]*)\)", cell.source)
            for term, name in bold:
                if term.lower() in chinese:
                    compared += 1
                    assert chinese[term.lower()] in name, f"{each.file}: {term}"
    assert compared > 20


def test_words_are_cut_for_two_languages():
    search = EnglishAndChinese({})
    assert search.split("KL散度 and 注意力, x_t") == [
        *("KL", "散", "度", "散度", "and"),
        *("注", "意", "力", "注意", "意力", "x_t"),
    ]
    assert search.stem("Entropies") == search.stem("entropy")
