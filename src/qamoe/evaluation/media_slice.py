"""Slices `signals` and `harmless`: the test split with media changed before extraction; not part of protocol 1.

Each cell is a separate test split (preprocess/signals/<cell>.arrow), predicted without further degradation. Severity 0
of every kind is the clean test split. Kinds of `harmless` are no damage. Nothing is announced to the models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.degradation.views import uniform_view
from qamoe.evaluation.protocol import Cell, by_view
from qamoe.media.degradations import HARMLESS, MODALITY, cells, slice_of
from qamoe.models.checkpoint import Trained

SLICES = ("signals", "harmless")


def plan(severities: Mapping[str, Sequence[float]], seed: int, modalities: Sequence[str]) -> list[Cell]:
    """Return the cells of the kinds whose modality the corpus has; each kind starts at severity 0."""
    view = (uniform_view("clean", 0.0, seed, 0),)  # clean: the media were degraded before extraction
    planned: list[Cell] = []
    for name, kind, severity in cells(severities):
        modality = MODALITY[kind]
        if modality not in modalities:
            continue
        if not planned or planned[-1].kind != kind:
            clean = f"{slice_of(kind)}-{modality}-{kind}-0"
            planned.append(Cell(slice_of(kind), clean, kind, 0.0, view, (modality,)))
        planned.append(Cell(slice_of(kind), name, kind, severity, view, (modality,)))
    return planned


def by_cell(
    trained: Sequence[Trained], opened: Callable[[Cell], DegradedSplit], planned: Sequence[Cell], device: str
) -> Iterator[list[pd.DataFrame]]:
    """Yield rows like `protocol.by_view`, cell by cell; `opened` returns the split of a cell under the clean view.

    The columns kind and severity of the degraded modality are those of the cell. lost is the severity too, because the
    share of audio that noise destroys is unknown; for a harmless kind it is 0. A modality without frames after
    degradation is missing.
    """
    for cell in planned:
        for frames in by_view(trained, opened(cell), [cell], device):
            for rows in frames if cell.severity else ():
                (modality,) = cell.modalities
                rows[f"kind_{modality}"] = cell.kind
                rows[f"severity_{modality}"] = np.float32(cell.severity)
                rows[f"lost_{modality}"] = np.float32(0 if cell.kind in HARMLESS else cell.severity)
            yield frames
