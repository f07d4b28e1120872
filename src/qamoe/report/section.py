"""What a section of the report returns: what the template prints, and its numbers under their names in summary.json."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Context = TypeVar("Context")
Numbers = dict[str, float | int | bool | None]  # name in summary.json -> value, rounded nowhere


@dataclass(frozen=True)
class Section(Generic[Context]):
    """`context` goes to report.html, `numbers` to summary.json; build.py puts the sections together."""

    context: Context
    numbers: Numbers


@dataclass(frozen=True)
class Image:
    """A figure of the page, inside it as a data: address."""

    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """A heading, a paragraph and the figures under it, two beside each other where they are small."""

    title: str
    text: str
    images: list[Image]
    small: bool


def merged(*parts: Numbers) -> Numbers:
    """The numbers of all parts. Raises ValueError for a name that two of them set."""
    whole: Numbers = {}
    for numbers in parts:
        if twice := whole.keys() & numbers.keys():
            raise ValueError(f"summary.json: {', '.join(sorted(twice))} set by two sections; each name has one section")
        whole |= numbers
    return whole
