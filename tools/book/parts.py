"""The parts of the course, by the first digit of a chapter's number; book.toml fills them."""

from typing import NamedTuple

from tools import Refusal
from tools.study.manifest import Book, Chapter


class Part(NamedTuple):
    """One part of the course, with or without chapters so far."""

    title: str
    title_zh: str
    builds: str  # what its chapters build, as the end of a sentence


PARTS = {
    "0": Part(
        "Orientation", "起步", "a first density model, and the training loop behind all others"
    ),
    "1": Part("Text", "文本", "attention, a Transformer that translates, a GPT that writes"),
    "2": Part("Latent variables", "隐变量", "models with hidden causes, trained by a bound"),
    "3": Part("Adversarial", "对抗", "generators that learn from a critic"),
    "4": Part("Diffusion", "扩散", "images out of noise, guided by a class or a caption"),
    "5": Part(
        "Sound, motion, many modalities", "声音、运动、多模态", "speech, video, text with images"
    ),
    "6": Part("In practice", "实践", "evaluation, kernels, scaling, inference, safe release"),
    "9": Part("Appendix", "附录", "glossary and sources"),
}


def chapters_of(book: Book) -> dict[str, list[Chapter]]:
    """For every key of PARTS its chapters, in the order of book.toml; maybe none."""
    found: dict[str, list[Chapter]] = {key: [] for key in PARTS}
    for chapter in book.chapters:
        if chapter.number[0] not in PARTS:
            raise Refusal(f"book.toml: chapter {chapter.file!r}: there is no part for it")
        found[chapter.number[0]].append(chapter)
    return found


def path_to(book: Book, chapter: Chapter) -> list[Chapter]:
    """The chapters that one needs, directly or not, and itself, each after its own needs."""
    by_file = {each.file: each for each in book.chapters}
    path: list[Chapter] = []

    def visit(file: str) -> None:
        for need in by_file[file].needs:
            visit(need)
        if by_file[file] not in path:
            path.append(by_file[file])

    visit(chapter.file)
    return path


def short_title(chapter: Chapter) -> str:
    """A title for narrow places: what stands before its colon, without an article."""
    title = chapter.title.partition(":")[0].removeprefix("The ")
    return title[:1].upper() + title[1:]
