"""A chapter that holds every kind of markup a chapter may use, and a smaller one before it."""

import base64
from pathlib import Path

from equations import Equations
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NAME, FIRST = "99_sample", "00_start_here"
EQUATIONS = Equations(display=7, inline=17)

BOOK = f"""
[book]
title = "Tiny"
title_zh = "小"
authors = ["A. Author"]
language = "en"

[[chapter]]
file = "{FIRST}"
title = "First"
title_zh = "第一"
needs = []
seconds = 1
minutes = 1
minutes_all = 1
"""
MANIFEST = f"""
[[chapter]]
file = "{NAME}"
title = "Sample"
title_zh = "样例"
needs = []
seconds = 1
minutes = 1
minutes_all = 1
assignment = "{NAME}"
"""
REFERENCE = "\n@misc{sample2000, author = {A. Author}, title = {Title}, year = {2000}}\n"

# What the sample refers to in the course's first chapter.
MARKDOWN_FIRST = r"""
# 00. First

:::{prf:theorem} Gibbs' inequality
:label: thm-gibbs

$$
\mathrm{KL}(p \,\|\, q) \ge 0
$$ (eq-gibbs)
:::

:::{exercise} Code
:label: ex-code
Write it.
:::
"""
MARKDOWN = [
    r"""
# 99. Sample

Prices such as \$5 and `code $x$` hold no equation, $H(p) \ge 0$ is one.

:::{dropdown} 中文提要
**熵**(entropy):$H(p) = 0$ 当且仅当 $p$ 是确定的。
:::
""",
    r"""
## Goals

See.

## Derivation

$$
\boxed{\;\mathrm{KL}(p \,\|\, q) = \sum_x p(x) \log\frac{p(x)}{q(x)} \;\ge\; 0\;}
$$ (eq-sample-gibbs)

and, by {eq}`eq-sample-gibbs` and {eq}`eq-sample-later`,

$$
\boxed{\begin{aligned}
H(p, q) &= -\sum_x p(x) \log q(x) \\
        &= H(p) + \mathrm{KL}(p \,\|\, q)
\end{aligned}}
$$ (eq-sample-cross)

- in a list, with $a_i * b_i$ and $a_j * b_j$:

  $$
  f(x) = \begin{cases} 1 & x > 0 \\ 0 & x \le 0 \end{cases}
  $$ (eq-sample-list)

> In a quotation, $\mathbf{x} \in \mathbb{R}^2$.

\begin{align}
\hat\theta &= \operatorname*{arg\,max}_\theta L(\theta)
\end{align}
""",
    r"""
:::{prf:theorem} Gibbs' inequality
:label: thm-sample
For $p, q$ on a finite set,

$$
\mathrm{KL}(p \,\|\, q) = 0 \iff p = q .
$$ (eq-sample-later)
:::

:::{prf:proof}
The logarithm is concave: $\log u \le u - 1$.
:::

By {prf:ref}`thm-sample`, {eq}`eq-sample-cross` is least at $q = p$: cross-entropy is.

:::{admonition} Myth: "a small loss means a good model"
:class: warning
Not below $H(p)$.

| symbol | shape |
|:--|:--|
| $p(x \mid z)$ | $\lvert x \rvert$ |
:::

:::{note}
$$
e = \lim_{n \to \infty} \left(1 + \tfrac1n\right)^n
$$ (eq-sample-note)
:::
""",
    r"""
(sec-sample)=
### A place

[This place](#sec-sample), [the first chapter](00_start_here.ipynb), its
[Gibbs' inequality](00_start_here.ipynb#eq-gibbs), a footnote[^1], and

:::{figure} results/sample.png
:name: fig-sample
:width: 80px
A caption with $c$.
:::

which is {numref}`fig-sample`.

[^1]: Words alone.

:::{table} Sizes
:name: tab-sample

| a | b |
|---|---|
| $1$ | 2 |
:::

{numref}`tab-sample` has a caption.

```python
price = "$not an equation$"
```
""",
    r"""
### Further on (deeper)

Not needed next.

(sec-below)=
#### Below it

This is deeper, too.
""",
    r"""
## Exercises

:::{exercise} A quick check
:label: ex-sample
Show that $H(p) \ge 0$.
:::

::::{solution} ex-sample
:label: sol-sample
:class: dropdown
Every term is:

$$
-p(x) \log p(x) \ge 0
$$ (eq-sample-solution)

:::{tip}
{ref}`ex-sample` needs $p(x) \le 1$.
:::
::::
""",
    r"""
## Sources

- A. Author, "Title", 2000: section 6. {cite}`sample2000`
""",
]
CAPTION = "**Figure 99.1.** A single pixel, which is blue, for $c$."
# A blue pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "YPj/HwADBwIAMCbHYQAAAABJRU5ErkJggg=="
)
CODE = """# Solution: draw something
import matplotlib.pyplot as plt
from tqdm import tqdm

from aigc_lib import plotting

for _ in tqdm(range(3)):
    pass
plt.figure(figsize=(2, 1))
plt.plot([1, 2])
print("$not an equation$")"""


ASSIGNMENT = """# Assignment 99. What a pixel knows

One finds out little.

| task | points | minutes |
|:--|--:|--:|
| 1. Look | 60 | 45 |
| 2. Look again | 40 | 60 |

Restart and run all takes 2 s.
"""


def put_first(root: Path) -> None:
    """Write the smaller chapter into a course."""
    cell = new_markdown_cell(MARKDOWN_FIRST.strip("\n"), id="cell-000")
    write(new_notebook(cells=[cell]), root / f"chapters/{FIRST}.ipynb")


def put(root: Path) -> None:
    """Write the sample chapter, its picture and its assignment into a course."""
    chapters, work = root / "chapters", root / "assignments" / NAME
    for folder in (chapters / "results", work):
        folder.mkdir(parents=True, exist_ok=True)
    write(new_notebook(cells=[new_markdown_cell(ASSIGNMENT)]), work / f"{NAME}.ipynb")
    solution = new_code_cell(CODE, execution_count=1)
    solution.outputs = [
        new_output("stream", text="$not an equation$\n"),
        new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"}),
    ]
    solution.metadata = {
        "tags": ["hide-cell"],
        "jupyter": {"source_hidden": True, "outputs_hidden": True},
    }
    cells = [new_markdown_cell(text.strip("\n")) for text in MARKDOWN]
    cells[-1:-1] = [solution, new_markdown_cell(CAPTION)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:03}"
    write(new_notebook(cells=cells, metadata=metadata), chapters / f"{NAME}.ipynb")
    (chapters / "results/sample.png").write_bytes(base64.b64decode(PNG))
