"""The counter that the browser tests trust."""

import pytest
import sample
from equations import in_markdown, in_notebook

CASES = {
    "inline": ("$a$ and $b$", 0, 2),
    "over a line's end": ("$a +\nb$", 0, 1),
    "display": ("$$\na\n$$ (eq-a)\n\n$$ b $$", 2, 0),
    "display and inline": ("$a$\n\n$$\nb\n$$\n\n$c$", 1, 2),
    "aligned, within dollars": ("$$\n\\begin{aligned} a &= b \\end{aligned}\n$$", 1, 0),
    "align within dollars counts once": ("$$\n\\begin{align} a &= b \\end{align}\n$$", 1, 0),
    "bare align": ("\\begin{align*}\na &= b\n\\end{align*}\n\n$c$", 1, 1),
    "price": (r"\$5 and \$6", 0, 0),
    "line break before the closing dollar": (r"$a \\$ and \$5", 0, 1),
    "code span": ("`$a$` and ``$`$`` and $b$", 0, 1),
    "an unclosed backtick hides nothing": ("a ` tick\n\n$b$ ` $c$", 0, 2),
    "code block": ("```python\nx = '$a$'\n```\n$b$", 0, 1),
    "code block, tildes": ("~~~\n$a$\n```\n$a$\n~~~\n$b$", 0, 1),
    "code directive": ("```{code-block} python\n$a$\n```\n$b$", 0, 1),
    "fenced directive": ("```{note}\n$a$\n```\n$b$", 0, 2),
    "directive's title": ("```{admonition} On $a$\n$b$\n```", 0, 2),
    "code in a directive": ("````{note}\n```\n$a$\n```\n$b$\n````\n$c$", 0, 2),
    "colon directive": (":::{prf:proof}\n$a$\n\n$$\nb\n$$ (eq-b)\n:::", 1, 1),
    "table": ("| a | b |\n|---|---|\n| $a$ | $b$ |\n| $c$ | d |", 0, 3),
    "list": ("- $a$\n\n  $$\n  b\n  $$ (eq-b)\n- $c$", 1, 2),
    "quotation": ("> $a$", 0, 1),
    "comments": ("<!-- $a$\n$b$ -->\n% $c$\n50 % of $d$", 0, 1),
    "role": ("{eq}`eq-a` and {math-free}`$`", 0, 0),
    "nothing": ("", 0, 0),
}


@pytest.mark.parametrize(("text", "display", "inline"), CASES.values(), ids=CASES)
def test_each_form_is_counted_once(text, display, inline):
    assert in_markdown(text) == (display, inline)


def test_a_dollar_without_a_partner_is_refused():
    with pytest.raises(ValueError, match=r"without a partner in: costs \$5"):
        in_markdown("$a$\n\ncosts $5 only")


def test_only_markdown_cells_are_counted(tmp_path):
    sample.put(tmp_path)
    assert in_notebook(tmp_path / f"chapters/{sample.NAME}.ipynb") == sample.EQUATIONS
