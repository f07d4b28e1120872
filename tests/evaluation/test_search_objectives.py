"""What a search measures of a trial agrees with the definition of each objective on small arrays."""

import numpy as np
import pytest

from qamoe.config.params import Selection
from qamoe.evaluation.search_objectives import measures
from qamoe.training.selection import Cells, SplitPredictions, selection_cells

CLIPS = 4
PRESENT = np.array([[True, True, False]] * 3 + [[True, False, False]])


def cells(**severities: tuple[float, ...]) -> Cells:
    return selection_cells(Selection(severities=severities, draws=2, seed=1))


def predicted(errors: list[float], r: list[float] | None = None) -> SplitPredictions:
    """Return predictions whose errors, and r of text and audio, are these in every clip of a view."""
    value = np.repeat(np.array(errors)[:, None], CLIPS, 1)
    of_text = None if r is None else np.repeat(np.array(r)[:, None], CLIPS, 1)
    stacked = None if of_text is None else np.stack([of_text, 1 - of_text, of_text], 2)
    return SplitPredictions(np.zeros(CLIPS), value=value, r=stacked)


def test_a_cell_counts_once_whatever_its_draws() -> None:
    found = measures(predicted([1.0, 2.0, 4.0, 5.0, 7.0]), cells(noise=(0.0, 0.3, 1.0)), PRESENT)
    assert found == {"error": pytest.approx((1 + 3 + 6) / 3), "clean": 1.0, "degraded": pytest.approx((3 + 6) / 2)}


def test_trust_compares_clean_with_half_degraded_and_above() -> None:
    """r of text falls with severity and that of audio rises; vision, which no clip has, does not count."""
    r = [0.9, 0.99, 0.99, 0.4, 0.5]  # at .3, r is above that of clean, which must not count
    found = measures(predicted([1.0] * 5, r), cells(noise=(0.0, 0.3, 0.5)), PRESENT)
    assert found["trust"] == pytest.approx((1 + 0) / 2)
    text_alone = measures(predicted([1.0] * 5, r), cells(noise=(0.0, 0.3, 0.5)), PRESENT & [True, False, False])
    assert text_alone["trust"] == 1


def test_cells_without_a_severity_have_no_such_objective() -> None:
    assert set(measures(predicted([1.0, 2.0], [0.5, 0.5]), cells(noise=(0.3,)), PRESENT)) == {"error", "degraded"}
    assert set(measures(predicted([1.0], [0.5]), cells(noise=(0.0,)), PRESENT)) == {"error", "clean"}


def test_cells_of_a_landscape_have_every_objective() -> None:
    """Clips of (0, .6) that keep a modality have it undamaged, so r is compared with that of noise alone."""
    landscape = cells(landscape=(0.0, 0.6))  # (0, 0) once, then (0, .6), (.6, 0) and (.6, .6) twice
    r = [0.9, 0.95, 0.95, 0.4, 0.5, 0.3, 0.2]
    found = measures(predicted([1.0, 2.0, 4.0, 5.0, 7.0, 8.0, 8.0], r), landscape, PRESENT & [True, False, False])
    assert found == {
        "error": pytest.approx((1 + 3 + 6 + 8) / 4),
        "clean": 1.0,
        "degraded": pytest.approx((3 + 6 + 8) / 3),
        "trust": 1.0,
    }
