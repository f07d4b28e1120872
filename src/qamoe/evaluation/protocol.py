"""The reliability spectrum, protocol version 1: plan the cells, predict them once, and aggregate the predictions.

A cell is one way of degrading the whole test split; a slice is a named set of cells. All metrics, intervals and
comparisons are computed from the stored predictions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, product
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from qamoe.config.params import LANDSCAPE, Evaluate
from qamoe.data.arrow_store import Store
from qamoe.dataset.degraded_split import DegradedSplit
from qamoe.degradation.features import DRAWN, HELD_OUT, KINDS, PAPER_NOISE, State, trainable_kinds, valid_tokens
from qamoe.degradation.spectrum import Spectrum
from qamoe.degradation.views import View, uniform_view
from qamoe.errors import UserError
from qamoe.evaluation import metrics
from qamoe.evaluation.encoding_cache import Encoding, Encodings, of_checkpoint
from qamoe.files import atomic_write
from qamoe.models.checkpoint import Trained
from qamoe.models.heads import prediction_columns
from qamoe.rng import MODALITIES, clip_key

PROTOCOL = 1
SEVERITIES = tuple(round(0.1 * step, 1) for step in range(11))
JOINT = (0.0, 0.25, 0.5, 0.75, 1.0)  # of missing and of noise
SWAPPED = (0.25, 0.5, 0.75, 1.0)
HELD_OUT_MODALITIES = ("audio", "vision")  # modalities that the held-out kinds degrade
_BATCH = 128
_ROWS = 50_000  # of predictions that are buffered before they are written


@dataclass(frozen=True)
class Cell:
    """One cell and its draws.

    `modalities` are those that it degrades, also at severity 0. `severity` is NaN if clips draw their own (slice mixed)
    and if there are two, of missing and of noise (slices joint and landscape).
    """

    slice: str
    name: str
    kind: str
    severity: float
    views: tuple[View, ...]
    modalities: tuple[str, ...] = MODALITIES
    severity_missing: float = nan
    severity_noise: float = nan


def plan(
    slices: Iterable[str],
    params: Evaluate,
    modalities: Sequence[str] = MODALITIES,
    timed: Sequence[str] = HELD_OUT_MODALITIES,
) -> list[Cell]:
    """Return the cells of the named slices in a fixed order, for a corpus that has `modalities`.

    `timed` are the modalities with a known frame rate; others cannot be shifted by a time.
    """
    cells: list[Cell] = []
    for name in slices:
        if name == "clean":
            cells.append(Cell(name, name, name, 0.0, (uniform_view(name, 0.0, params.seed, 0),), ()))
        elif name == "mixed":
            cells.append(mixed(params.seed, params.mixed_draws, modalities))
        elif name == "held_out":
            cells += _held_out(modalities, timed, params)
        elif name in ("signals", "harmless"):  # have their own clips: evaluation/media_slice.py
            continue
        elif name in trainable_kinds():
            cells += _curve(name, name, name, modalities, params)
        else:
            cells += _PLANNED[name](modalities, params)
    return cells


def _views(kinds: dict[str, str], severity: float, params: Evaluate) -> tuple[View, ...]:
    """Return the draws of a cell: these kinds by modality at one severity; other modalities are clean."""
    kind_of_each = tuple(kinds.get(m, "clean") for m in MODALITIES)
    severities = tuple(severity if m in kinds else 0.0 for m in MODALITIES)
    return tuple(
        View(params.seed, draw, kind_of_each, severities) for draw in range(params.draws if severity > 0 else 1)
    )


def _curve(slice_: str, name: str, kind: str, modalities: Sequence[str], params: Evaluate) -> Iterator[Cell]:
    """Yield the cells of one kind in some modalities, one per severity."""
    for severity in SEVERITIES:
        views = _views(dict.fromkeys(modalities, kind), severity, params)
        yield Cell(slice_, f"{name}-{severity:.1f}", kind, severity, views, tuple(modalities))


def mixed(seed: int, draws: int, modalities: Sequence[str] = MODALITIES) -> Cell:
    """Return the cell in which each clip and modality draws a kind and severity: as in training, but never clean."""
    views = tuple(View(seed, draw) for draw in range(draws))
    return Cell("mixed", "mixed", "mixed", nan, views, tuple(modalities))


def _alone(modalities: Sequence[str], params: Evaluate) -> Iterator[Cell]:
    for modality, kind in product(modalities, DRAWN):
        yield from _curve("alone", f"alone-{modality}-{kind}", kind, (modality,), params)


def _joint(modalities: Sequence[str], params: Evaluate) -> Iterator[Cell]:
    """Yield the cells of noise followed by missing in all modalities."""
    count = len(MODALITIES)
    for missing, noise in product(JOINT, JOINT):
        steps = [((kind,) * count, (s,) * count) for kind, s in (("noise", noise), ("missing", missing))]
        draws = params.draws if missing or noise else 1
        yield Cell(
            "joint",
            f"joint-{missing:.2f}-{noise:.2f}",
            "noise+missing",
            nan,
            tuple(View(params.seed, draw, *steps[0], then=steps[1]) for draw in range(draws)),
            tuple(modalities),
            missing,
            noise,
        )


def _landscape(modalities: Sequence[str], params: Evaluate) -> Iterator[Cell]:
    """Yield the cells of the paper's spectrum: noise of strength lambda, whole modalities lost with probability eta."""
    levels = params.landscape.levels
    for noise, missing in product(levels, levels):
        spectrum = Spectrum((noise, noise), (missing, missing))
        share = float(params.landscape.announced)
        views = [
            View(params.seed, draw, spectrum=spectrum, mask_revealed_share=share)
            for draw in range(params.landscape.draws if noise or missing else 1)
        ]
        name, kind = f"{LANDSCAPE}-{noise:.2f}-{missing:.2f}", f"{PAPER_NOISE}+missing"
        yield Cell(LANDSCAPE, name, kind, nan, tuple(views), tuple(modalities), missing, noise)


def _subsets(modalities: Sequence[str], params: Evaluate) -> Iterator[Cell]:
    """Yield each subset of modalities, the others wholly missing: announced, and blind. No random numbers."""
    kept = [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]
    for announced, subset in product((True, False), kept):
        missing = tuple(m for m in modalities if m not in subset)
        if not missing and not announced:
            continue
        kinds = tuple("missing" if m in missing else "clean" for m in MODALITIES)
        view = View(params.seed, 0, kinds, tuple(float(m in missing) for m in MODALITIES), announced=announced)
        name = f"subsets-{''.join(m[0] for m in subset)}{'' if announced else '-blind'}"
        yield Cell("subsets", name, "missing" if missing else "clean", 1.0 if missing else 0.0, (view,), missing)


def _swap(modalities: Sequence[str], params: Evaluate) -> Iterator[Cell]:
    for modality, severity in product(modalities, SWAPPED):
        views = _views({modality: "swap"}, severity, params)
        yield Cell("swap", f"swap-{modality}-{severity:.2f}", "swap", severity, views, (modality,))


def _held_out(modalities: Sequence[str], timed: Sequence[str], params: Evaluate) -> Iterator[Cell]:
    """Yield the cells of kinds that neither training nor selection uses, in audio and vision together."""
    for kind in HELD_OUT:
        degraded = [m for m in HELD_OUT_MODALITIES if m in modalities and (kind != "desync" or m in timed)]
        if degraded:
            yield from _curve("held_out", f"held_out-{kind}", kind, degraded, params)


_PLANNED = {"alone": _alone, "joint": _joint, LANDSCAPE: _landscape, "subsets": _subsets, "swap": _swap}


def slice_names() -> tuple[str, ...]:
    """Return the names of all slices: a curve for each trainable kind, and the slices with their own plan."""
    return ("clean", *trainable_kinds(), "mixed", *_PLANNED, "held_out", "signals", "harmless")


def views(cells: Iterable[Cell]) -> list[View]:
    """Return the distinct views to encode for the cells, in order: those of the cells, or their parts."""
    return list(dict.fromkeys(part for cell in cells for view in cell.views for part in view.parts() or (view,)))


def by_view(
    trained: Sequence[Trained], split: DegradedSplit, cells: Iterable[Cell], device: str, side_by_side: int = 1
) -> Iterator[list[pd.DataFrame]]:
    """Predict the same degraded clips with several checkpoints of one corpus, cell by cell and draw by draw.

    Yields for each view one table of rows per checkpoint, in clip-id order; `split` has all these views.
    `side_by_side` checkpoints predict in parallel, one thread each, with the same results as alone.
    """
    store = split.store
    batches, sort = batched(store)
    order = [row for rows in batches for row in rows]
    clip_columns = {
        "clip_id": np.array([store.clip_ids[row] for row in order], object)[sort],
        "source": np.array([store.sources[row] for row in order], object)[sort],
        "target": np.array([store.labels[row] for row in order], np.float32)[sort],
        **_sorted(_valid_frames(split, batches), sort),
    }
    keys = torch.tensor([clip_key(store.clip_ids[row]) for row in order], dtype=torch.int64)
    planned = [(cell, view) for cell in cells for view in cell.views]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(side_by_side, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        encodings = Encodings(trained, split, batches, [view for _, view in planned], device, pool.map)
        for cell, view in planned:
            encoded, state = encodings.of(view), view.state(keys)
            shared = {"slice": cell.slice, "cell": cell.name, "draw": view.number} | clip_columns
            conditions = _conditions(cell, encoded, state)
            shared |= _sorted(conditions, sort)
            known = state.with_realised_swaps(torch.tensor(np.stack([conditions[f"lost_{m}"] for m in MODALITIES], 1)))

            def columns(index: int, encoded: dict[str, Encoding] = encoded, known: State = known) -> dict[str, Any]:
                return predicted(trained[index], *of_checkpoint(encoded, index), state=known)

            results = pool.map(columns, range(len(trained)))
            yield [pd.DataFrame(shared | _sorted(columns_of_model, sort)) for columns_of_model in results]


def batched(store: Store) -> tuple[list[list[int]], np.ndarray]:
    """Return the rows of a split in batches of similar text length, and the permutation that sorts them by clip id."""
    lengths = store.lengths("text")
    order = sorted(range(len(store)), key=lambda row: (int(lengths[row]), row))
    sort = np.argsort(np.array([store.clip_ids[row] for row in order]))
    return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)], sort


def measure(trained: Sequence[Trained], split: DegradedSplit, cells: Sequence[Cell], device: str) -> list[pd.DataFrame]:
    """Return all rows of `by_view` in one table per checkpoint; for few cells."""
    return [
        pd.concat(frames, ignore_index=True) for frames in zip(*by_view(trained, split, cells, device), strict=True)
    ]


def _sorted(columns: dict[str, Any], sort: np.ndarray) -> dict[str, Any]:
    """Return the columns in the order `sort`."""
    return {name: values[sort] for name, values in columns.items()}


def _valid_frames(split: DegradedSplit, batches: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    counts: dict[str, list[np.ndarray]] = {f"frames_{m}": [] for m in MODALITIES}
    for batch in (split.clean(rows) for rows in batches):
        for modality in MODALITIES:
            valid = batch.mask.get(modality)
            if valid is None:
                valid = torch.zeros(len(batch), 1, dtype=torch.bool)
            elif modality == "text":
                valid = valid_tokens(batch.x["text"], valid, split.references["text"].special)
            counts[f"frames_{modality}"].append(valid.sum(1).numpy())
    return {name: np.concatenate(parts) for name, parts in counts.items()}


def _conditions(cell: Cell, encoded: dict[str, Encoding], state: State) -> dict[str, np.ndarray]:
    """Return the columns that describe the degradation of each clip."""
    columns: dict[str, np.ndarray] = {}
    joint = cell.slice == "joint" and bool((state.kind >= 0).any())
    names = np.array([*KINDS, "clean"], object)
    for index, modality in enumerate(MODALITIES):
        kind, severity = names[state.kind[:, index].numpy()], state.severity[:, index]
        if joint:
            kind, severity = np.full(len(kind), cell.kind, object), torch.full_like(severity, cell.severity_missing)
        if modality in encoded:
            lost = encoded[modality].lost
        else:
            kind, severity, lost = (np.full(len(kind), "absent", object), *[torch.full_like(severity, nan)] * 2)
        columns[f"kind_{modality}"] = kind
        columns[f"severity_{modality}"] = severity.numpy()
        columns[f"lost_{modality}"] = lost.numpy()
    return columns


def predicted(
    trained: Trained,
    vectors: dict[str, Tensor],
    present: dict[str, Tensor],
    quality: Tensor | None = None,
    state: State | None = None,
) -> dict[str, Any]:
    """Return the columns of a checkpoint: its predictions, reliability, trust and routing.

    `vectors` (N, D) are the checkpoint's; `present` (N,) marks clips with a valid frame. `quality` (N, M) overrides r.
    `state` is how the clips were degraded; only the oracle uses it.
    """
    present_NM = torch.stack([present[m] for m in trained.config["modalities"]], 1)
    clips = len(present_NM)
    prediction = trained.fuse(vectors, clips, quality, state)
    trust = None if prediction.r is None else trained.trust(prediction.r.float().cpu(), present_NM)
    columns: dict[str, Any] = {f"{n}_{m}": np.full(clips, nan, np.float32) for m in MODALITIES for n in ("r", "trust")}
    model_columns = prediction_columns(prediction, trained.config, trust)
    columns |= {name: column.float().cpu().numpy() for name, column in model_columns.items()}
    if prediction.presence is not None:
        has = prediction.presence.float().cpu().numpy() >= 0.5
        columns |= {"prediction": has @ 2.0 ** np.arange(has.shape[1]), "variance": np.full(clips, nan)}
    elif prediction.probabilities is None:
        columns["prediction"] = columns.pop("score")
    else:
        best = prediction.probabilities.float().cpu().numpy().argmax(1)
        columns |= {"prediction": best, "variance": np.full(clips, nan)}
    routing = np.full(clips, None, object)
    if "routing" in columns:
        routing[:] = list(columns["routing"])
    return columns | {"routing": routing}


def _schema(rows: pd.DataFrame) -> pa.Schema:
    numbers = ["target", "prediction", "variance", *metrics.classes_of(rows), *metrics.labels_of(rows)]
    return pa.schema(
        [(c, pa.string()) for c in ("clip_id", "source", "slice", "cell")]
        + [("draw", pa.int32())]
        + [("within", pa.bool_())] * ("within" in rows)
        + [(c, pa.float64()) for c in numbers]
        + [
            (f"{column}_{m}", kind)
            for m in MODALITIES
            for column, kind in (
                ("kind", pa.string()),
                ("severity", pa.float32()),
                ("lost", pa.float32()),
                ("frames", pa.int32()),
                ("r", pa.float32()),
                ("trust", pa.float32()),
            )
        ]
        + [("routing", pa.list_(pa.float32()))]
    )


@contextmanager
def predictions_file(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that appends rows to a parquet file; the file is complete when the body ends."""
    waiting: list[pd.DataFrame] = []
    writer: pq.ParquetWriter | None = None

    def flush() -> None:
        nonlocal writer
        rows = pd.concat(waiting, ignore_index=True)
        waiting.clear()
        schema = _schema(rows)
        if writer is None:
            writer = pq.ParquetWriter(aside, schema)
        writer.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False))

    def append(rows: pd.DataFrame) -> None:
        waiting.append(rows)
        if sum(map(len, waiting)) >= _ROWS:
            flush()

    with atomic_write(path) as aside:
        try:
            yield append
            if waiting:
                flush()
        finally:
            if writer is not None:
                writer.close()


def aggregate(
    predictions: pd.DataFrame,
    cells: Sequence[Cell],
    sigmas: dict[str, float],
    temperature: float = 1.0,
    limits: tuple[float, float] = metrics.LIMITS,
) -> pd.DataFrame:
    """Return one row per (cell, draw, metric). Raises UserError if a cell, draw or clip is missing or duplicate.

    sigmas, temperature, limits: calibration and label range, as in metrics.of_predictions.
    """
    clips = predictions["clip_id"].nunique()
    groups = dict(list(predictions.groupby(["cell", "draw"], sort=False)))
    rows = []
    for cell in cells:
        for view in cell.views:
            group = groups.get((cell.name, view.number))
            if group is None or group["clip_id"].nunique() != clips or len(group) != clips:
                count = 0 if group is None else len(group)
                raise UserError(
                    f"Cell {cell.name}, draw {view.number} has {count} predictions; expected {clips}, one per clip."
                )
            shared: dict[str, Any] = {
                "slice": cell.slice,
                "cell": cell.name,
                "kind": cell.kind,
                "modalities": "+".join(cell.modalities),
                "severity": cell.severity,
                "severity_missing": cell.severity_missing,
                "severity_noise": cell.severity_noise,
                "draw": view.number,
                "n": clips,
            }
            values = metrics.of_predictions(group, sigmas, temperature, limits)
            rows += [{**shared, "metric": m, "value": v} for m, v in values.items()]
    return pd.DataFrame(rows)
