"""Properties of views: what they do to one modality, in two steps, and to a clip alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qamoe.data.batch import Batch
from qamoe.degradation.features import DRAWN, KINDS, Reference
from qamoe.degradation.views import View, apply
from qamoe.rng import MODALITIES, Draws, clip_key

pytestmark = pytest.mark.integration

SPECIAL = (0, 101, 102)
REFERENCES = {
    "text": Reference(frequencies=torch.arange(1, 301) / 300, unk=100, special=SPECIAL),
    "audio": Reference(mean=torch.zeros(2), deviation=torch.ones(2), rate=4.0),
    "vision": Reference(mean=torch.ones(3), deviation=torch.ones(3), rate=2.0),
}
of_batches = settings(max_examples=40)  # three modalities each

severities = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
kinds = st.tuples(*[st.sampled_from(["clean", *KINDS])] * 3)
levels = st.tuples(*[severities] * 3)
shares = st.sampled_from([0.0, 0.5, 1.0])
seeds, numbers = st.integers(0, 2**32 - 1), st.integers(0, 50)
fixed_views = st.builds(
    View, seeds, numbers, kinds, levels, announced=st.booleans(), then=st.none() | st.tuples(kinds, levels)
)
drawn_views = st.builds(
    View, seeds, numbers, clean_share=shares, shared_draw_share=shares, full_severity_share=st.sampled_from([0.0, 0.5]),
    mask_revealed_share=shares, swap=st.booleans(), drawn=st.sampled_from([DRAWN, ("missing",), ("burst", "noise")]),
)  # fmt: skip
views = fixed_views | drawn_views


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Clips of any lengths, 0 among them, with padding that is not zero."""
    count = draw(st.integers(1, 4))
    clips = draw(st.lists(st.integers(0, 99), min_size=count, max_size=count, unique=True))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    x, mask = {}, {}
    for modality, columns in (("text", 0), ("audio", 2), ("vision", 3)):
        lengths = torch.tensor(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
        length = max(1, int(lengths.max()) + draw(st.integers(0, 1)))
        mask[modality] = torch.arange(length) < lengths[:, None]
        x[modality] = (
            torch.randn(count, length, columns, generator=source)
            if columns
            else torch.randint(98, 105, (count, length), generator=source)
        )
    return Batch(torch.tensor([clip_key(f"clip-{clip}") for clip in clips]), x, mask, None)


def partner(modality: str, draws: Draws) -> tuple[Tensor, Tensor]:
    """A partner that depends on nothing but the clip's draws of the stream swap."""
    assert draws.stream == "swap"
    lengths = draws.words(2)[:, 1] % 4
    mask = torch.arange(3) < lengths[:, None]
    ids = torch.full(mask.shape, 250) * mask.long()
    columns = {"text": 0, "audio": 2, "vision": 3}[modality]
    return (ids[..., None].expand(*mask.shape, columns).float() if columns else ids), mask


def under(batch: Batch, view: View) -> tuple[Batch, Tensor]:
    changed, lost, _ = apply(batch, view, REFERENCES, partner)
    return changed, lost


def alone(batch: Batch, row: int) -> Batch:
    """One clip without padding."""
    x, mask = {}, {}
    for modality, valid in batch.mask.items():
        length = max(1, int(valid[row].sum()))
        x[modality], mask[modality] = batch.x[modality][row : row + 1, :length], valid[row : row + 1, :length]
    return Batch(batch.keys[row : row + 1], x, mask, None)


def assert_same_clip(changed: Batch, row: int, expected: Batch, other: int, modality: str) -> None:
    mask, other_mask = changed.mask[modality][row], expected.mask[modality][other]
    assert mask.sum() == other_mask.sum()
    assert torch.equal(changed.x[modality][row][mask], expected.x[modality][other][other_mask])


@of_batches
@given(batch=batches(), view=views)
def test_a_clip_is_the_same_alone_and_in_any_batch(batch: Batch, view: View) -> None:
    changed, lost = under(batch, view)
    for row in range(len(batch)):
        by_itself, lost_alone = under(alone(batch, row), view)
        assert torch.equal(lost[row], lost_alone[0])
        for modality in MODALITIES:
            assert_same_clip(changed, row, by_itself, 0, modality)


@of_batches
@given(batch=batches(), view=views)
def test_the_batch_is_not_changed_and_types_are_kept(batch: Batch, view: View) -> None:
    before = {m: (batch.x[m].clone(), batch.mask[m].clone()) for m in MODALITIES}
    changed, lost = under(batch, view)
    assert ((lost >= 0) & (lost <= 1)).all()
    for modality, (x, mask) in before.items():
        assert torch.equal(batch.x[modality], x)
        assert torch.equal(batch.mask[modality], mask)
        assert changed.x[modality].dtype == x.dtype
        assert changed.x[modality].shape[:2] == changed.mask[modality].shape
    assert torch.equal(changed.keys, batch.keys)


@of_batches
@given(batch=batches(), view=views)
def test_a_view_of_one_modality_does_the_same_to_it(batch: Batch, view: View) -> None:
    changed, lost = under(batch, view)
    for place, modality in enumerate(MODALITIES):
        of_modality, lost_of_modality = under(batch, view.of(modality))
        assert torch.equal(of_modality.x[modality], changed.x[modality])
        assert torch.equal(of_modality.mask[modality], changed.mask[modality])
        assert torch.equal(lost_of_modality[:, place], lost[:, place])


@given(view=fixed_views, elsewhere=fixed_views, place=st.integers(0, 2))
def test_views_that_treat_a_modality_alike_are_equal_for_it(view: View, elsewhere: View, place: int) -> None:
    """The encodings of a modality are cached by its view: what the other modalities have is no part of the key."""

    def combined(here: tuple[Any, ...], there: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple((here if m == place else there)[m] for m in range(len(MODALITIES)))

    assert view.kinds is not None
    assert view.severities is not None
    assert elsewhere.kinds is not None
    assert elsewhere.severities is not None
    then = elsewhere.then or (("noise",) * 3, (0.5,) * 3)
    other = replace(
        view,
        kinds=combined(view.kinds, elsewhere.kinds),
        severities=combined(view.severities, elsewhere.severities),
        then=(combined(view.then[0], then[0]), combined(view.then[1], then[1])) if view.then else None,
    )
    modality = MODALITIES[place]
    assert view.of(modality) == other.of(modality)
    if not view.severities[place] and not (view.then and view.then[1][place]):
        clean = replace(other, number=view.number + 1, announced=not view.announced)
        assert view.of(modality) == clean.of(modality), "a modality that nothing happens to is the same in every draw"


@of_batches
@given(batch=batches(), view=fixed_views.filter(lambda view: view.then is not None))
def test_two_steps_are_two_views_one_after_the_other(batch: Batch, view: View) -> None:
    assert view.then is not None
    changed, lost = under(batch, view)
    first, _ = under(batch, replace(view, then=None))
    second, lost_second = under(first, replace(view, kinds=view.then[0], severities=view.then[1], then=None))
    assert torch.equal(lost, lost_second)
    for row in range(len(batch)):
        for modality in MODALITIES:
            assert_same_clip(changed, row, second, row, modality)


@of_batches
@given(batch=batches(), view=views)
def test_the_mask_is_emptied_where_a_loss_is_announced_and_nowhere_else(batch: Batch, view: View) -> None:
    changed, _ = under(batch, view)
    state = view.state(batch.keys)
    unannounced, _ = under(batch, replace(view, announced=False, mask_revealed_share=0.0))
    for place, modality in enumerate(MODALITIES):
        expected = unannounced.mask[modality] & ~state.announced[:, place, None]
        assert torch.equal(changed.mask[modality], expected)


@given(view=fixed_views)
@example(View(7, 0, ("clean",) * 3, (0.0,) * 3, announced=True, then=(("missing",) * 3, (1.0, 0.5, 0.0))))
def test_modalities_that_are_wholly_missing_are_announced_and_no_others(view: View) -> None:
    assert view.kinds is not None
    assert view.severities is not None
    announced = view.state(torch.zeros(2, 2, dtype=torch.int64)).announced
    for place in range(len(MODALITIES)):
        steps = [(view.kinds[place], view.severities[place])]
        if view.then:
            steps.append((view.then[0][place], view.then[1][place]))
        lost = any(kind in ("missing", "missing_features") and severity == 1 for kind, severity in steps)
        assert announced[:, place].tolist() == [lost and view.announced] * 2


@given(view=views, clips=st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_the_severity_of_two_steps_is_that_of_both(view: View, clips: list[int]) -> None:
    keys = torch.tensor([clip_key(f"clip-{clip}") for clip in clips])
    steps, state = view.states(keys), view.state(keys)
    left = torch.stack([1 - step.severity for step in steps]).prod(0)
    assert torch.allclose(1 - state.severity, left, atol=1e-6)
    for part in range(len(MODALITIES)):
        kinds_of_steps = [step.kind[:, part] for step in steps]
        first = torch.where(kinds_of_steps[0] < 0, kinds_of_steps[-1], kinds_of_steps[0])
        assert torch.equal(state.kind[:, part], first)
