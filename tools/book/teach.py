"""The page "Teach with it": syllabi of several lengths, from what book.toml says."""

from tools.book import filling
from tools.book.assignments import Assignment
from tools.book.parts import PARTS, chapters_of, path_to, short_title
from tools.study.manifest import Book, Chapter

LENGTHS = (6, 12, 14)  # weeks
PER_WEEK = 2  # chapters, at most
# A third of a chapter's time each.
STAGES = {
    "lecture": "Goals, Derivation",
    "lab": "Build, Match, Train, Look",
    "exercises": "What goes wrong, At scale, Exercises",
}


def selection(book: Book, count: int) -> list[Chapter]:
    """At most `count` chapters, from all parts in turn, each with everything that it needs."""
    chosen: set[str] = set()
    waiting = [list(chapters) for chapters in chapters_of(book).values()]
    while any(waiting):
        for chapters in waiting:
            if chapters:
                path = {each.file for each in path_to(book, chapters.pop(0))}
                if len(chosen | path) <= count:
                    chosen |= path
    in_order: list[Chapter] = []
    for chapter in book.chapters:
        if chapter.file in chosen:
            in_order += [each for each in path_to(book, chapter) if each not in in_order]
    return in_order


def weeks(chapters: list[Chapter], length: int) -> list[list[tuple[Chapter, str]]]:
    """For every week pairs of a chapter and one of its STAGES, about the same minutes in each."""
    plan: list[list[tuple[Chapter, str]]] = [[] for _ in range(length)]
    total, before = sum(chapter.minutes for chapter in chapters), 0.0
    for chapter in chapters:
        for stage in STAGES:
            minutes = chapter.minutes / len(STAGES)
            plan[int((before + minutes / 2) / total * length)].append((chapter, stage))
            before += minutes
    return plan


def page(book: Book, works: dict[str, Assignment], template: str) -> str:
    """Fill the template, the text of site/teach.md; assignments are given by chapter."""
    content = {
        "stages": "\n".join(f"- **{stage}**: {parts}" for stage, parts in STAGES.items()),
        "syllabi": "\n".join(_syllabus(book, works, length) for length in LENGTHS),
        "assignments": _assignments(book, works),
        "chapters": _table(book),
    }
    return filling.fill(template, content, "site/teach.md")


def _syllabus(book: Book, works: dict[str, Assignment], length: int) -> str:
    chapters = selection(book, PER_WEEK * length)
    left_out = len(book.chapters) - len(chapters)
    lines = [f"## {length} weeks", ""]
    if left_out:
        lines += [f"{len(chapters)} chapters from all parts; {left_out} are left out.", ""]
    lines += ["| week | what is taught | reading | assignment |", "|--:|:--|--:|--:|"]
    for number, taught in enumerate(weeks(chapters, length), 1):
        stages: dict[Chapter, list[str]] = {}
        for chapter, stage in taught:
            stages.setdefault(chapter, []).append(stage)
        minutes = sum(chapter.minutes / len(STAGES) for chapter, _ in taught)
        what = "; ".join(_what(chapter, done) for chapter, done in stages.items())
        handed_out = [works[c.file] for c, done in stages.items() if _is_set(c, works, done)]
        work = sum(assignment.minutes for assignment in handed_out) or "—"
        lines.append(f"| {number} | {what or 'what is still open'} | {minutes:.0f} | {work} |")
    return "\n".join([*lines, ""])


def _is_set(chapter: Chapter, works: dict[str, Assignment], stages: list[str]) -> bool:
    """An assignment is handed out with the exercises, the last stage of its chapter."""
    return chapter.file in works and "exercises" in stages


def _what(chapter: Chapter, stages: list[str]) -> str:
    whole = len(stages) == len(STAGES)
    return link(chapter) + ("" if whole else f": {', '.join(stages)}")


def _assignments(book: Book, works: dict[str, Assignment]) -> str:
    if not works:
        return "There are none yet."
    lines = [
        f"{len(works)} chapters have an assignment that is graded by its own tests. It is handed",
        "out with the chapter's exercises.",
        "",
        "| chapter | assignment | tasks | points | minutes |",
        "|:--|:--|--:|--:|--:|",
    ]
    for chapter in book.chapters:
        if work := works.get(chapter.file):
            numbers = f"{work.tasks} | {work.points} | {work.minutes}"
            lines.append(f"| {link(chapter)} | {work.title} | {numbers} |")
    return "\n".join(lines)


def _table(book: Book) -> str:
    head = ["chapter", "part", "needs", "core path", "all", "runs in"]
    lines = [f"| {' | '.join(head)} |", "|:--|:--|:--|--:|--:|--:|"]
    for key, chapters in chapters_of(book).items():
        for chapter in chapters:
            needs = ", ".join(need[:2] for need in chapter.needs) or "—"
            lines.append(
                f"| {link(chapter)} | {PARTS[key].title} | {needs} | {chapter.minutes} "
                f"| {chapter.minutes_all} | {chapter.seconds} |"
            )
    return "\n".join(lines)


def link(chapter: Chapter) -> str:
    """A link to a chapter, with its number and short title."""
    return f"[{chapter.number} {short_title(chapter)}]({chapter.file}.ipynb)"


def goals(book: Book) -> str:
    """A table for the front page: for every chapter that nothing else needs, the way to it."""
    needed = {need for chapter in book.chapters for need in chapter.needs}
    lines = ["| you want | you read | hours |", "|:--|:--|--:|"]
    for chapter in book.chapters:
        if chapter.file not in needed:
            path = path_to(book, chapter)
            hours = sum(each.minutes for each in path) / 60
            way = " → ".join(f"[{each.number}]({each.file}.ipynb)" for each in path)
            lines.append(f"| {short_title(chapter)} | {way} | {hours:.3g} |")
    return "\n".join(lines)
