// What the theme leaves out, for those who use a screen reader or the keyboard.
document.addEventListener("DOMContentLoaded", () => {
  const sidebar = document.querySelector("#pst-primary-sidebar");
  sidebar?.setAttribute("role", "complementary");
  sidebar?.setAttribute("aria-label", "The book");
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label"); // its text says more
  }
  for (const summary of document.querySelectorAll(".bd-links summary")) {
    summary.setAttribute("aria-label", "Pages below");
  }
  for (const summary of document.querySelectorAll(".cell summary")) {
    summary.removeAttribute("aria-label"); // likewise
  }
  for (const source of document.querySelectorAll(".citation")) {
    source.setAttribute("role", "listitem"); // in place of a role that is out of use
  }
  for (const list of document.querySelectorAll(".sig > dl, .sig > dl > dd")) {
    const box = document.createElement("div"); // Sphinx writes definitions without terms
    box.append(...list.childNodes);
    list.replaceWith(box);
  }
  for (const term of document.querySelectorAll("a.term")) {
    term.dataset.tip = term.title; // shown by book.css, also for the keyboard
    term.removeAttribute("title");
  }
  for (const head of document.querySelectorAll("th")) {
    if (!head.textContent.trim()) {
      head.replaceWith(document.createElement("td")); // a table's empty corner heads nothing
    }
  }
});

// An equation that is wider than its line scrolls: by arrow keys, too, once Tab can reach it. The
// line's width changes with the window, the sidebars and the fonts.
const reachWide = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const equation = target.closest("mjx-container");
    if (equation.scrollWidth > equation.clientWidth) {
      equation.tabIndex = 0;
    } else {
      equation.removeAttribute("tabindex");
    }
  }
});
window.addEventListener("load", () => {
  window.MathJax?.startup?.promise?.then(() => {
    for (const equation of document.querySelectorAll("mjx-container[display=true]")) {
      reachWide.observe(equation);
      reachWide.observe(equation.firstElementChild);
    }
  });
});

// What the next chapters do not need can be folded away; the choice holds for all chapters.
document.addEventListener("DOMContentLoaded", () => {
  if (!document.querySelector("section.deeper")) return;
  const button = document.createElement("button");
  button.className = "deeper-switch";
  const fold = (folded) => {
    document.documentElement.classList.toggle("core-only", folded);
    button.textContent = folded ? "Show what goes deeper" : "Fold what goes deeper";
    localStorage.setItem("core-only", folded ? "yes" : "");
  };
  button.addEventListener("click", () =>
    fold(!document.documentElement.classList.contains("core-only")),
  );
  document.querySelector("section#goals").append(button);
  fold(localStorage.getItem("core-only") === "yes");
  const find = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.closest("section.deeper") && !target.matches("section.deeper")) {
      fold(false); // a link leads there
      target.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", find);
  find();
});
