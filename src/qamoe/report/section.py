"""Define a section of the report: a context for the template, and numbers by their names in summary.json."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

Context = TypeVar("Context")
Numbers = dict[str, float | int | bool | None]  # name in summary.json -> unrounded value


@dataclass(frozen=True)
class Section(Generic[Context]):
    """`context` goes to report.html, `numbers` to summary.json; build.py puts the sections together."""

    context: Context
    numbers: Numbers


@dataclass(frozen=True)
class Image:
    """A figure embedded in the page as a data: URI."""

    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """A heading, a paragraph, the figures under it and a table; small figures are laid out in columns.

    `words` are the columns whose cells are words; the cells of others are numbers, except those of the first.
    """

    title: str
    text: str
    images: list[Image]
    small: bool
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    words: tuple[str, ...] = ()


def merged(*parts: Numbers) -> Numbers:
    """Merge the numbers of all parts. Raises ValueError for a name that two parts set."""
    merged_numbers: Numbers = {}
    for numbers in parts:
        if duplicates := merged_numbers.keys() & numbers.keys():
            raise ValueError(f"summary.json: two sections set {', '.join(sorted(duplicates))}")
        merged_numbers |= numbers
    return merged_numbers
