"""Slice `signals`: the test split whose media were degraded before extraction, outside protocol 1.

Each cell is a test split of its own (preprocess/signals/<cell>.arrow), predicted as it is; severity 0 of every kind is
the clean test split. The models are told nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.degradation.views import uniform_view
from qamoe.evaluation.protocol import Cell, by_view
from qamoe.media.degradations import MODALITY, cells
from qamoe.models.checkpoint import Trained

SLICE = "signals"


def plan(severities: Mapping[str, Sequence[float]], seed: int, modalities: Sequence[str]) -> list[Cell]:
    """The cells of the kinds whose modality the corpus has, each kind from severity 0 on."""
    view = (uniform_view("clean", 0.0, seed, 0),)  # what is degraded was so before it was extracted
    planned: list[Cell] = []
    for name, kind, severity in cells(severities):
        modality = MODALITY[kind]
        if modality not in modalities:
            continue
        if not planned or planned[-1].kind != kind:
            planned.append(Cell(SLICE, f"signals-{modality}-{kind}-0", kind, 0.0, view, (modality,)))
        planned.append(Cell(SLICE, name, kind, severity, view, (modality,)))
    return planned


def by_cell(
    trained: Sequence[Trained], opened: Callable[[Cell], DegradedSplit], planned: Sequence[Cell], device: str
) -> Iterator[list[pd.DataFrame]]:
    """Rows as `protocol.by_view` yields them, cell by cell; `opened` gives the split of a cell under the clean view.

    The degraded modality's columns hold the kind, the severity, and as lost the severity too: how much of a sound a
    noise takes away is not known. A clip whose modality gave no frames any more is predicted without it.
    """
    for cell in planned:
        for frames in by_view(trained, opened(cell), [cell], device):
            for rows in frames if cell.severity else ():
                (modality,) = cell.modalities
                rows[f"kind_{modality}"] = cell.kind
                rows[f"severity_{modality}"] = np.float32(cell.severity)
                rows[f"lost_{modality}"] = np.float32(cell.severity)
            yield frames
