"""What a browser shows of a page that should not be there."""

import re

from playwright.sync_api import Page

RAW = re.compile(r":::|\$\$|\{[a-z]+(?::[a-z]+)?\}`?|\(eq-|\\[a-z]+\{")
TEXT = """selector => [...document.querySelectorAll(selector)].map(element => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll("pre, code, script, mjx-container, .katex").forEach(e => e.remove());
    return copy.textContent;
}).join("\\n")"""


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
