"""What a browser shows of a page that should not be there."""

import os
import re

import pytest
from equations import Equations
from playwright.sync_api import Page

RAW = re.compile(r":::|\$\$|\{[a-z]+(?::[a-z]+)?\}`|\(eq-|\\[a-z]{2,}\{")
TEXT = """selector => [...document.querySelectorAll(selector)].map(element => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll("pre, code, script, mjx-container, .katex").forEach(e => e.remove());
    return copy.textContent;
}).join("\\n")"""


def unavailable(reason: str) -> None:
    """Skip, or fail where AIGC_REQUIRE_BROWSER=1 says that everything must run."""
    if os.environ.get("AIGC_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and AIGC_REQUIRE_BROWSER=1")
    pytest.skip(reason)


def watch(page: Page, address: str) -> tuple[list[str], set[str]]:
    """What goes wrong in a tab from now on, and what it asks of the only server that it may ask.

    Both grow: error messages, failed answers, requests to other servers; paths on the server.
    """
    trouble, asked = [], set()

    def note(request) -> None:
        if request.url.startswith(address):
            asked.add(request.url.removeprefix(address).lstrip("/").partition("?")[0])
        elif not request.url.startswith(("data:", "blob:", "about:")):
            trouble.append(f"outside: {request.url}")

    page.on("request", note)
    page.on("console", lambda m: m.type == "error" and trouble.append(f"console: {m.text}"))
    page.on("pageerror", lambda error: trouble.append(f"script: {error}"))
    page.on("response", lambda r: r.status >= 400 and trouble.append(f"{r.status}: {r.url}"))
    return trouble, asked


def raw_markup(page: Page, selector: str) -> list[str]:
    """Markup that was not rendered: directives, roles, labels, TeX; not in code or equations."""
    return RAW.findall(page.evaluate(TEXT, selector))


def broken_images(page: Page, selector: str) -> list[str]:
    """The beginnings of the addresses of pictures that have no pixels."""
    images = page.locator(f"{selector} img")
    return images.evaluate_all(
        "images => images.filter(i => !i.naturalWidth).map(i => i.src.slice(0, 200))"
    )


TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def settle(page: Page) -> None:
    """Wait for MathJax (a page may have none), fonts and movements, then for two frames."""
    page.evaluate("() => window.MathJax?.startup.promise")
    page.evaluate("() => document.fonts.ready.then(() => true)")
    page.wait_for_function("() => !document.getAnimations().some(a => a.playState === 'running')")
    page.evaluate(TWO_FRAMES)


# Beyond the window, and not inside something that scrolls by itself.
TOO_WIDE = "document.documentElement.scrollWidth > window.innerWidth + 1"
# What scrolls is a stop for Tab; equations that don't are none.
REACHED = """() => {
    const scrolls = element => element.scrollWidth > element.clientWidth;
    const wide = math => math.matches("[display=true]") && scrolls(math);
    const all = selector => [...document.querySelectorAll("article " + selector)];
    return all("mjx-container").every(math => (math.tabIndex === 0) === wide(math))
        && all(":is(pre, .pst-scrollable-table-container)").every(
            box => box.tabIndex === 0 || !scrolls(box));
}"""


def layout_faults(page: Page) -> list[str]:
    """What does not fit into the window, has no pixels, or scrolls out of the keyboard's reach."""
    settle(page)
    faults = ["wider than the window"] if page.evaluate(TOO_WIDE) else []
    page.wait_for_function(REACHED)  # who watches their width is told a little later
    return faults + broken_images(page, "article")


def shown_equations(page: Page) -> Equations:
    """Count the equations of a page of the book."""
    display = page.locator("article mjx-container[display=true]").count()
    return Equations(display, page.locator("article mjx-container").count() - display)


def equation_faults(page: Page) -> list[str]:
    """What MathJax could not read, with the text around.

    It prints a command that it does not know as red text and calls it no error.
    """
    return page.evaluate(r"""() => {
        const faults = [];
        for (const equation of document.querySelectorAll("article mjx-container")) {
            const error = equation.querySelector("mjx-merror");
            const unknown = [...equation.querySelectorAll("mjx-assistive-mml mtext")]
                .find(text => text.textContent.startsWith("\\"));
            if (error || unknown) {
                const why = error?.dataset.mjxError ?? unknown.textContent;
                const around = equation.closest("p, li, td, div").cloneNode(true);
                around.querySelectorAll("mjx-container").forEach(math => math.replaceWith("…"));
                faults.push(`${why}, in: ${around.textContent.trim().slice(0, 80)}`);
            }
        }
        return faults;
    }""")


def thin_out(page: Page) -> None:
    """Leave of what a page has many times one of each kind, or axe-core would take minutes.

    Of the words in code one of each colour stays, of equations one in each kind of place, of rows,
    sources and functions the first ones. `layout_faults` looks at all equations that scroll.
    """
    page.evaluate(
        """() => {
            const seen = new Set();
            for (const word of document.querySelectorAll(".highlight span, .sig span")) {
                const kind = `${word.className} ${word.closest(".sig") !== null}`;
                if (seen.has(kind)) word.replaceWith(word.textContent);
                seen.add(kind);
            }
            for (const math of document.querySelectorAll("mjx-container")) {
                const place = math.closest("p, li, td, th, h2, h3, figcaption, div")?.tagName;
                const kind = `${place} ${math.getAttribute("display")} ${math.tabIndex}`;
                if (seen.has(kind)) math.replaceWith("x");
                seen.add(kind);
            }
            for (const part of document.querySelectorAll("article :is(tr, .citation, dl.py)")) {
                const kind = `${part.tagName} ${part.className}`;
                const many = [...part.parentElement.children].filter(
                    other => `${other.tagName} ${other.className}` === kind);
                if (many.indexOf(part) > 4) part.remove();
            }
            document.body.normalize();
        }"""
    )


# Of axe-core's rules those that depend on the colour scheme, and on the window's width.
COLOURS = ("color-contrast",)
LAYOUT = ("scrollable-region-focusable", "target-size")
FRAME = [".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".bd-footer"]


def accessibility_faults(
    page: Page, scheme: str, rules: tuple[str, ...] = (), frame: bool = True
) -> list[str]:
    """What axe-core, which must have been added to the page, finds in a colour scheme.

    `rules` are all by default; without `frame` nothing around the article is looked at.
    """
    page.emulate_media(color_scheme=scheme)
    page.locator(f"html[data-theme={scheme}]").wait_for()
    settle(page)
    page.wait_for_function(REACHED)
    return page.evaluate(
        """async ([rules, without]) => {
            const exclude = without.filter(selector => document.querySelector(selector));
            const options = { resultTypes: ["violations"], preload: false };
            if (rules.length) options.runOnly = rules;
            const found = await axe.run(exclude.length ? { exclude } : document, options);
            return found.violations.flatMap(rule => rule.nodes.slice(0, 5).map(node =>
                `${rule.id}: ${node.target} ${node.failureSummary.replace(/\\s+/g, " ")}`));
        }""",
        [list(rules), [] if frame else FRAME],
    )
