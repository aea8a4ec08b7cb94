"""`make check`: what a change can have broken, found by who imports or names the changed files.

Imports are read with `ast`, also those inside functions and in the cells of notebooks. A module or
a file that a string names counts as well. A change reaches all that import what it reached.
"""

import ast
import dataclasses
import fnmatch
import json
import re
import subprocess
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from tools import Refusal, num_workers
from tools.study import manifest

TOPS = ("aigc_lib", "bench", "tools", "tests", "site")
MODULE = re.compile(r"\b(?:aigc_lib|bench|tools|tests)(?:\.\w+)*")
PACKAGE = re.compile(r"(?:aigc_lib\.\w+|bench|tools)(?:\.\w+)*\.")  # f"bench.{x}": any module there
MAGIC = re.compile(r"^[ \t]*[%!].*$", re.M)  # what IPython alone understands
# Who reads files that no source names: they are found when it runs.
READERS = {
    "chapters/*.ipynb": ("tests/test_chapters.py", "tests/tools/study/test_readme.py"),
    "assignments/*": ("tests/assignments/*.py",),
    "tests/assignments/*": ("tests/assignments/*.py",),
    "tests/grading/99*": ("tests/grading/*.py", "tests/assignments/*.py"),
    "bench/results/*": ("tests/bench/*.py",),
    "site/*": ("tests/site/*.py",),
}
# What costs too much to be run for more than its own code.
BROWSER = ("site/*", "tools/book/*", "tests/site/*")
KERNELS = ("aigc_lib/kernels/*", "tools/kernels/*", "tests/kernels/*")
ALWAYS = "tests/test_house.py"
PATIENCE = 120  # seconds that the chosen notebooks may take, by book.toml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What a check runs, and what it leaves out: paths from the repository's root."""

    tests: list[str]
    notebooks: dict[str, float]  # the seconds that each is expected to take
    browser: bool
    kernels: bool
    too_long: list[str]  # reached, but with the others longer than PATIENCE
    untouched: list[str]


def changed(root: Path, since: str = "") -> list[str]:
    """What git says has changed since HEAD or a commit; if that is nothing, in the last commit."""

    def git(*arguments: str) -> set[str]:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise Refusal(f"git {arguments[0]}: {done.stderr.strip()}")
        return {name for name in done.stdout.split("\0") if name}

    names = ("-z", "--name-only", "--no-renames")
    found = git("diff", *names, since or "HEAD", "--")
    found |= git("ls-files", "-z", "--others", "--exclude-standard")
    return sorted(found or git("show", *names, "--format=", "--first-parent", "HEAD"))


def needs(root: Path, others: Collection[str] = ()) -> dict[str, set[str]]:
    """For each source, Python or notebook, the files that it imports or names.

    Of the `others` any may be named; a module among them may be gone and still be imported.
    """
    paths = [path for top in TOPS for path in sorted((root / top).rglob("*.py"))]
    paths += sorted(root.glob("chapters/*.ipynb")) + sorted(root.glob("assignments/*/*.ipynb"))
    found = {path.relative_to(root).as_posix(): set() for path in paths}
    known = {*found, *others}
    plain = {other for other in others if not other.endswith((".py", ".ipynb"))}
    for path, (name, own) in zip(paths, found.items(), strict=True):
        modules, texts = _read(path)
        for module in modules:
            own |= _files(module, PurePosixPath(name).parent, known)
        own |= {other for other in plain if _named(PurePosixPath(other).name, texts)}
        if path.name.startswith("test_"):
            own |= {f"{folder}/conftest.py" for folder in PurePosixPath(name).parents} & known
    return found


def _read(path: Path) -> tuple[set[str], list[str]]:
    """The modules that a source imports or names, and its strings; docstrings do not count."""
    modules, texts, docstrings = set(), [], set()
    for tree in _trees(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                modules |= {f"{base}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Expr):
                docstrings.add(node.value)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts += [node.value] if node not in docstrings else []
    modules |= {name for text in texts for name in MODULE.findall(text)}
    return modules | {text for text in texts if PACKAGE.fullmatch(text)}, texts


def _trees(path: Path) -> Iterator[ast.AST]:
    sources = [path.read_text(encoding="utf-8")]
    if path.suffix == ".ipynb":
        cells = json.loads(sources[0])["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for source in sources:
        with warnings.catch_warnings(action="ignore"):  # an escape in a string of a student's
            try:
                yield ast.parse(MAGIC.sub("pass", source) if path.suffix == ".ipynb" else source)
            except SyntaxError:
                yield ast.Expression(ast.Constant(source))


def _files(module: str, folder: PurePosixPath, known: set[str]) -> set[str]:
    """The files that run when a source in `folder` imports a module, packages above it included."""
    name = module.lstrip(".")
    if up := len(module) - len(name):
        name = ".".join([*folder.parts[: len(folder.parts) - up + 1], name])
    parts, found = name.split("."), {f"{folder}/{name.split('.')[0]}.py"}  # a test's helper
    for end in range(1, len(parts) + 1):
        place = "/".join(parts[:end])
        found |= {f"{place}.py", f"{place}/__init__.py"}
    if not parts[-1]:
        found |= {other for other in known if fnmatch.fnmatch(other, place + "[!/]*.py")}
    return found & known


def _named(name: str, texts: list[str]) -> bool:
    globs = [text for text in texts if re.fullmatch(r"[\w.*-]*\*[\w.*-]*\w", text)]
    return any(name in text for text in texts) or any(fnmatch.fnmatch(name, glob) for glob in globs)


def reached(needs: dict[str, set[str]], start: Collection[str]) -> dict[str, int]:
    """All that needs one of `start`, directly or not, and in how many steps."""
    steps, new = dict.fromkeys(start, 0), set(start)
    while new:
        new = {name for name, own in needs.items() if own & new} - steps.keys()
        steps |= dict.fromkeys(new, max(steps.values()) + 1)
    return steps


def choose(root: Path, book: manifest.Book, changed: list[str]) -> Choice:
    """What to run when these files have changed."""
    graph = needs(root, changed)
    for pattern, readers in READERS.items():
        for name in graph:
            if any(fnmatch.fnmatch(name, reader) for reader in readers):
                graph[name] |= set(fnmatch.filter(changed, pattern))
    seconds = manifest.notebooks(book)
    results = fnmatch.filter(changed, "chapters/results/*")  # part of what a notebook shows
    shown = {f"chapters/{PurePosixPath(name).name.split('.')[0]}.ipynb" for name in results}
    steps = reached(graph, {*changed, *(shown & seconds.keys())})
    tests = {name for name in graph if fnmatch.fnmatch(name, "tests/*test_*.py")}
    tests -= set(fnmatch.filter(tests, "tests/kernels/*"))
    run = (tests & steps.keys()) | ({ALWAYS} & tests)
    chosen: dict[str, float] = {}
    touched = sorted(seconds.keys() & steps.keys(), key=lambda name: (steps[name], seconds[name]))
    for name in touched:
        total = [*chosen.values(), seconds[name]]
        if steps[name] == 0 or max(*total, sum(total) / num_workers()) <= PATIENCE:
            chosen[name] = seconds[name]

    def own(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.filter(changed, pattern) for pattern in patterns)

    return Choice(
        tests=sorted(run),
        notebooks=chosen,
        browser=own(BROWSER),
        kernels=own(KERNELS),
        too_long=[name for name in touched if name not in chosen],
        untouched=sorted((tests - run) | (seconds.keys() - steps.keys())),
    )


def explained(changed: list[str], choice: Choice) -> str:
    """What a check runs and what it leaves out, in four lines or less."""

    def listed(names: Collection[str]) -> str:
        tests = [name for name in names if name.endswith(".py")]
        words = [f"{len(tests)} test files"] if tests else []
        for folder in ("chapters", "assignments"):
            found = [PurePosixPath(name).name[:2] for name in sorted(names) if folder in name[:12]]
            words += [f"{folder} {', '.join(found)}"] if found else []
        return ", ".join(words) or "nothing"

    kinds = {"browser tests": choice.browser, "kernels": choice.kernels}
    runs = [listed([*choice.tests, *choice.notebooks]), *(k for k, on in kinds.items() if on)]
    rest = [listed(choice.untouched), *(kind for kind, on in kinds.items() if not on)]
    shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    lines = [f"Changed: {shown or 'nothing'}.", f"Runs: lint, {', '.join(runs)}."]
    lines.append(f"Left out, since nothing changed that they import: {', '.join(rest)}.")
    if choice.too_long:
        lines.append(f"Left out, since together they take too long: {listed(choice.too_long)}.")
    return "\n".join(lines)
