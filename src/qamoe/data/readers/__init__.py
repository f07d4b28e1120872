"""Kinds of corpora. To add one, write a file with `read(path, task, faults) -> Corpus` and one line in READERS.

If `faults` is None, the first invalid row raises UserError. If it is a list, errors of rows are appended to it and the
other rows are read.
"""

from pathlib import Path
from typing import Protocol

from qamoe.config.task import Task
from qamoe.data import manifest
from qamoe.data.clip import Corpus
from qamoe.data.readers import iemocap, meld, mintrec, mmsa


class Reader(Protocol):
    def __call__(self, path: Path, task: Task, faults: list[str] | None = None) -> Corpus: ...


READERS: dict[str, Reader] = {
    "sample": manifest.read_generated,
    "clips": manifest.read,
    "mmsa": mmsa.read,
    "mintrec": mintrec.read,
    "iemocap": iemocap.read,
    "meld": meld.read,
}
