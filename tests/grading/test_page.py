"""What students and markers see of a notebook: formulas without network, nothing that runs."""

import re
from xml.etree import ElementTree

import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from tools.grading import page, source
from tools.study import notebooks

MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.S)


def shown(text, **cell):
    return page.markdown2html({"cell": cell}, text)


@pytest.mark.parametrize("path", source.find(), ids=lambda path: path.stem)
def test_every_formula_of_the_assignments_is_drawn(path):
    texts = [c.source for c in notebooks.read(path).cells if c.cell_type == "markdown"]
    formulas = [match for text in texts for match in MATH.finditer(text)]
    assert len(formulas) > 50
    for match in formulas:
        drawn = page.mathml(match[1] or match[2], bool(match[1]))
        assert drawn.startswith("<math"), match[0]
        ElementTree.fromstring(re.sub("&[A-Z][A-Za-z]+;", "", drawn))


@pytest.mark.parametrize(
    ("tex", "same"),
    [
        (r"\frac12", r"\frac{1}{2}"),
        (r"\tfrac1S", r"\frac{1}{S}"),
        (r"1, \dots, n", r"1, \ldots, n"),
        (r"\Big( x \big)", r"( x )"),
        ("\\begin{aligned}a &= b \\\\ c &= d\\end{aligned}", r"a &= b \\ c &= d"),
    ],
)
def test_what_the_converter_lacks_is_said_in_its_words(tex, same):
    assert page.mathml(tex, True) == page.mathml(same, True)
    assert page.mathml(tex, True).startswith("<math")


def test_a_formula_that_nobody_can_read_is_shown_as_written():
    text = shown(r"see $\nosuch{<b>}$ and $\frac{1}$ here")
    assert r"<code>\nosuch{&lt;b&gt;}</code>" in text
    assert r"<code>\frac{1}</code>" in text


def test_roles_are_reduced_to_their_words_and_equations_numbered():
    first = "$$\na\n$$ (eq-one)\n\n$$\nb\n$$ (eq-two)\n"
    second = "from {eq}`eq-two` and {ref}`the exercise <ex>`, {cite}`Who2020`"
    nb = page.numbered(new_notebook(cells=[new_markdown_cell(t) for t in (first, second)]))
    texts = [shown(cell.source) for cell in nb.cells]
    assert re.findall(r"\(\d\)", texts[0]) == ["(1)", "(2)"]
    assert "from (2) and the exercise, Who2020" in texts[1]
    assert "eq-" not in "".join(texts)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "<iframe src='http://a.b'></iframe>",
        "<svg onload=alert(1)>",
        r"$\text{<script>alert(1)</script>}$",
        r"$\nosuch{<script>alert(1)</script>}$",
        "\ue0000\ue001 <script>alert(1)</script>",
    ],
)
def test_nothing_of_a_student_runs_in_a_browser(text):
    tags = re.findall("<[^>]*>", shown(text))
    assert not re.search(r"script|onerror|onload|iframe|svg", " ".join(tags))


def test_text_keeps_its_form_and_pictures():
    text = shown("# Head\n\n| a |\n|---|\n| *b* |\n\n```\n1 < 2\n```\n\nx<sub>1</sub>")
    for part in ("<h1>", "<td><em>b</em></td>", "1 &lt; 2", "<sub>1</sub>"):
        assert part in text
    mine = {"a.png": {"image/png": "aGk="}}
    assert 'src="data:image/png;base64,aGk="' in shown("![x](attachment:a.png)", attachments=mine)
    assert shown("![x](attachment:b.png)", attachments=mine) == "<p>[b.png]</p>\n"
