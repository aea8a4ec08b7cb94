"""What a browser shows of a page that should not be there."""

import os
import re

import pytest
from equations import Equations
from playwright.sync_api import Page

RAW = re.compile(r":::|\$\$|\{[a-z]+(?::[a-z]+)?\}`?|\(eq-|\\[a-z]{2,}\{")
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


def watch(page: Page, address: str) -> list[str]:
    """Note what goes wrong in a tab from now on.

    Args:
        page: the tab.
        address: the only server that it may ask.

    Returns:
        A list that grows: error messages, failed answers, requests to other servers.
    """
    seen: list[str] = []
    page.on("console", lambda m: m.type == "error" and seen.append(f"console: {m.text}"))
    page.on("pageerror", lambda error: seen.append(f"script: {error}"))
    page.on("response", lambda r: r.status >= 400 and seen.append(f"{r.status}: {r.url}"))
    own = (address, "data:", "blob:")
    page.on("request", lambda r: r.url.startswith(own) or seen.append(f"outside: {r.url}"))
    return seen


def raw_markup(page: Page, selector: str) -> list[str]:
    """Find markup that was not rendered: directives, roles, labels, TeX.

    Args:
        page: the tab.
        selector: where to look; code and equations in it are left out.

    Returns:
        The pieces found.
    """
    return RAW.findall(page.evaluate(TEXT, selector))


def broken_images(page: Page, selector: str) -> list[str]:
    """Find pictures that have no pixels.

    Args:
        page: the tab.
        selector: the element to look in.

    Returns:
        The beginnings of their addresses.
    """
    images = page.locator(f"{selector} img")
    return images.evaluate_all(
        "images => images.filter(i => !i.naturalWidth).map(i => i.src.slice(0, 200))"
    )


TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def settle(page: Page) -> None:
    """Wait until MathJax has set all equations (a page may have none) and two frames are drawn.

    Args:
        page: the tab.
    """
    page.evaluate("() => window.MathJax?.startup.promise")
    page.evaluate(TWO_FRAMES)


def shown_equations(page: Page) -> Equations:
    """Count the equations of a page of the book.

    Args:
        page: the tab.

    Returns:
        The counts.
    """
    display = page.locator("article mjx-container[display=true]").count()
    return Equations(display, page.locator("article mjx-container").count() - display)


def equation_faults(page: Page) -> list[str]:
    """Find equations that MathJax could not read.

    It prints a command that it does not know as red text and calls it no error.

    Args:
        page: the tab.

    Returns:
        What it says of each, with the text around.
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


def accessibility_faults(page: Page, only_contrast: bool) -> list[str]:
    """Ask axe-core, which must have been added to the page.

    Of the words in code, one of each colour is looked at; of equations all that stand alone, and
    of those within a line one for each kind of place. The rest becomes text, or a chapter would
    take minutes.

    Args:
        page: the tab.
        only_contrast: whether colours alone are of interest.

    Returns:
        Rule and place of each finding, with what is wrong.
    """
    options = {"runOnly": ["color-contrast"]} if only_contrast else {}
    return page.evaluate(
        """async options => {
            const seen = new Set();
            for (const word of document.querySelectorAll(".highlight span")) {
                if (seen.has(word.className)) word.replaceWith(word.textContent);
                seen.add(word.className);
            }
            for (const math of document.querySelectorAll("mjx-container:not([display=true])")) {
                const place = math.closest("p, li, td, th, h2, h3, figcaption")?.tagName;
                if (seen.has(place)) math.replaceWith("x");
                seen.add(place);
            }
            document.body.normalize();
            const found = await axe.run(document, {resultTypes: ["violations"], ...options});
            return found.violations.flatMap(rule => rule.nodes.slice(0, 5).map(node =>
                `${rule.id}: ${node.target} ${node.failureSummary.replace(/\\s+/g, " ")}`));
        }""",
        options,
    )
