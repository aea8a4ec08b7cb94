"""The page "Teach with it": syllabi of several lengths, from what book.toml says."""

from tools.book.parts import PARTS, chapters_of, path_to, short_title
from tools.manifest import Book, Chapter

LENGTHS = (6, 12, 14)  # weeks
PER_WEEK = 2  # chapters, at most
# A third of a chapter's time each.
STAGES = {
    "lecture": "Goals, Derivation",
    "lab": "Build, Match, Train, Look",
    "exercises": "What goes wrong, At scale, Exercises",
}


def selection(book: Book, count: int) -> list[Chapter]:
    """At most `count` chapters that go together, taken from all parts in turn.

    Args:
        book: the manifest.
        count: how many there is time for.

    Returns:
        Each with everything that it needs, in the order of book.toml.
    """
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
    """Spread chapters over a term, so that every week holds about the same number of minutes.

    Args:
        chapters: in the order in which they are taught.
        length: number of weeks.

    Returns:
        For every week pairs of a chapter and one of its STAGES.
    """
    plan: list[list[tuple[Chapter, str]]] = [[] for _ in range(length)]
    total, before = sum(chapter.minutes for chapter in chapters), 0.0
    for chapter in chapters:
        for stage in STAGES:
            minutes = chapter.minutes / len(STAGES)
            plan[int((before + minutes / 2) / total * length)].append((chapter, stage))
            before += minutes
    return plan


def page(book: Book) -> str:
    """Write the page.

    Args:
        book: the manifest.

    Returns:
        MyST Markdown.
    """
    lines = [
        "# Teach with it",
        "",
        "A chapter is one meeting with a lecture and a lab, or an evening of one's own. Its cells",
        "run on a laptop without a network; its exercises have folded solutions that are executed",
        "too. The plans below follow from what `book.toml` says of the chapters: what each needs,",
        "and how long it takes to read. They grow as chapters are added.",
        "",
        "A chapter is taught in three stages of about equal length:",
        "",
        *(f"- **{stage}**: {parts}" for stage, parts in STAGES.items()),
        "",
        "Reading times are in minutes; run times are seconds on two idle cores.",
        "",
    ]
    for length in LENGTHS:
        lines += _syllabus(book, length)
    return "\n".join([*lines, *_table(book)]) + "\n"


def _syllabus(book: Book, length: int) -> list[str]:
    chapters = selection(book, PER_WEEK * length)
    left_out = len(book.chapters) - len(chapters)
    lines = [f"## {length} weeks", ""]
    if left_out:
        lines += [f"{len(chapters)} chapters from all parts; {left_out} are left out.", ""]
    lines += ["| week | what is taught | reading |", "|--:|:--|--:|"]
    for number, taught in enumerate(weeks(chapters, length), 1):
        stages: dict[Chapter, list[str]] = {}
        for chapter, stage in taught:
            stages.setdefault(chapter, []).append(stage)
        minutes = sum(chapter.minutes / len(STAGES) for chapter, _ in taught)
        what = "; ".join(_what(chapter, done) for chapter, done in stages.items())
        lines.append(f"| {number} | {what or 'what is still open'} | {minutes:.0f} |")
    return [*lines, ""]


def _what(chapter: Chapter, stages: list[str]) -> str:
    whole = len(stages) == len(STAGES)
    due = f", assignment {chapter.assignment}" if chapter.assignment and "lab" in stages else ""
    return link(chapter) + ("" if whole else f": {', '.join(stages)}") + due


def _table(book: Book) -> list[str]:
    lines = ["## What every chapter takes", ""]
    lines += ["| chapter | part | needs | reading | runs in |", "|:--|:--|:--|--:|--:|"]
    for key, chapters in chapters_of(book).items():
        for chapter in chapters:
            needs = ", ".join(need[:2] for need in chapter.needs) or "—"
            lines.append(
                f"| {link(chapter)} | {PARTS[key].title} | {needs} | {chapter.minutes} "
                f"| {chapter.seconds} |"
            )
    return lines


def link(chapter: Chapter) -> str:
    """A link to a chapter.

    Args:
        chapter: which.

    Returns:
        Markdown with its number and short title.
    """
    return f"[{chapter.number} {short_title(chapter)}]({chapter.file}.ipynb)"


def goals(book: Book) -> str:
    """A table for the front page: for every chapter that nothing else needs, the way to it.

    Args:
        book: the manifest.

    Returns:
        Markdown.
    """
    needed = {need for chapter in book.chapters for need in chapter.needs}
    lines = ["| you want | you read | hours |", "|:--|:--|--:|"]
    for chapter in book.chapters:
        if chapter.file not in needed:
            path = path_to(book, chapter)
            hours = sum(each.minutes for each in path) / 60
            way = " → ".join(f"[{each.number}]({each.file}.ipynb)" for each in path)
            lines.append(f"| {short_title(chapter)} | {way} | {hours:.3g} |")
    return "\n".join(lines)
