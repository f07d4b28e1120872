"""Kinds of corpora. A new kind is one file with `read(path, task) -> Corpus` and one line in READERS."""

from collections.abc import Callable
from pathlib import Path

from qamoe.corpora import clips, mmsa
from qamoe.corpora.clip import Corpus
from qamoe.params import Task

READERS: dict[str, Callable[[Path, Task], Corpus]] = {
    "sample": clips.read_generated,
    "clips": clips.read,
    "mmsa": mmsa.read,
}
