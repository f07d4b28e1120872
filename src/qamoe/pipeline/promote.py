"""The best checkpoint of QA-MoE -> the registered champion, if the gate lets it: an event, without a DVC output.

Candidate and champion are measured on the gate split, which no other stage reads; never on test. The rules are in
registry/gate.py, aliases and records of it in registry/registry.py.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qamoe.config import settings
from qamoe.config.params import Params
from qamoe.data.stats import Stats, frame_stats
from qamoe.errors import UserError
from qamoe.files import file_digest
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.pipeline.shared import data_digest, read_stats, refuse_other_kinds

if TYPE_CHECKING:
    import pandas as pd

    from qamoe.data.arrow_store import Store
    from qamoe.degradation.views import View
    from qamoe.models.checkpoint import Trained
    from qamoe.registry.registry import Decision

MODEL = "qamoe"
_AT_ONCE = 64  # clips that are predicted at once
_COMPARED_CLIPS = 8  # that the registered model has to predict as the evaluated one


def run(params: Params, out: Path, dry: bool = False) -> None:
    """Promote, refuse or leave things as they are, or with `dry` only say which; the decision is printed last."""
    decision = decide(params, out, dry)
    for reason in decision.reasons:
        print(reason)
    if decision.run is not None:
        print(f"run: {decision.run}")
    print(f"decision: {decision.outcome}", flush=True)


def decide(params: Params, out: Path, dry: bool = False) -> "Decision":
    """Measure and ask the gate; with `dry` nothing is registered or recorded.

    Raises UserError where a stage before it has not run, or the champion is of another corpus.
    """
    from qamoe.evaluation.protocol import PROTOCOL
    from qamoe.models import checkpoint
    from qamoe.registry import registry
    from qamoe.registry.gate import GateMeasurements
    from qamoe.tracking.mlflow_store import connect, exclusive_lock, store_errors_as_user_errors
    from qamoe.tracking.runs import record_training

    stats = read_stats(out)
    refuse_other_kinds(stats, ("mixed",), "The gate")
    candidate = best_candidate(params, out)
    folder, config = candidate.folder, candidate.config
    split, store = gate_split(out)
    name = params.registry.name
    print(f"candidate: {MODEL} seed {config['seed']}, selection {config['selection']:.4f}; judged on split {split}")
    client = connect()
    with store_errors_as_user_errors():
        if not dry:
            with exclusive_lock():
                registry.finish(client, name)
        against = registry.champion(client, name)
    print(f"champion: {f'version {against.version} of {name}' if against else f'none yet of {name}'}")
    gate_digest = file_digest(store.path)
    key = registry.gate_key(gate_digest, PROTOCOL, params.registry, against)
    with store_errors_as_user_errors():
        decision = registry.existing_decision(client, name, checkpoint.digest(folder), key, against)
    if decision is not None:
        return decision
    with tempfile.TemporaryDirectory() as temporary:
        rivals = [checkpoint.load(folder, settings.device())]
        if against is not None:
            rivals.append(fetched(name, against.version, config, Path(temporary)))
        rows = _measured(params, stats, rivals, store, Path(temporary))
    measurements = GateMeasurements(
        config,
        rows[0],
        rows[1] if against else None,
        _raw_clips(store, stats, config["modalities"]),
        split,
        params.registry.coverage_90,
        params.registry.calibration_error,
        params.registry.tolerance,
    )
    if dry:
        print("dry run: nothing is registered or recorded, and no registered model asked whether it predicts the same")
        return registry.dry_run(measurements)
    data = registry.GateData(PROTOCOL, config["digests"]["data"], gate_digest)
    with store_errors_as_user_errors():
        run_id = record_training(client, folder, name)
        registry.keep_reference(client, run_id, reference_of(rivals[0], out))
        decision = registry.submit(client, name, run_id, measurements, key, against, data)
    if decision.outcome == "overtaken":
        print(f"another candidate became champion of {name} meanwhile: once more, against it")
        return decide(params, out)
    return decision


def reference_of(candidate: "Trained", out: Path) -> "pd.DataFrame":
    """What the candidate's training and validation clips are like, undamaged (registry/drift.py)."""
    import pandas as pd

    from qamoe.data.arrow_store import Store
    from qamoe.degradation.views import uniform_view
    from qamoe.registry import drift

    clean = uniform_view("clean", 0.0, 0, 0)
    stores = [Store(out / "preprocess" / f"{split}.arrow") for split in ("train", "valid")]
    parts = [described(candidate, store, clean).assign(**{drift.SOURCE: store.sources}) for store in stores]
    return pd.concat(parts, ignore_index=True)


def described(trained: "Trained", store: "Store", view: "View") -> "pd.DataFrame":
    """The clips of a split under a view as drift sees them, a row a clip: their inputs, and r of a model."""
    import pandas as pd

    from qamoe.dataset.degraded_split import DegradedSplit
    from qamoe.degradation.views import references_from_stats
    from qamoe.evaluation.protocol import predicted
    from qamoe.registry import drift

    stats, modalities = trained.config["stats"], tuple(trained.config["modalities"])
    split = DegradedSplit(store, (view,), modalities, references_from_stats(stats), None)
    clips, predictions = [], []
    for start in range(0, len(store), _AT_ONCE):
        batch, _, _ = split.degraded(0, range(start, min(start + _AT_ONCE, len(store))))
        clips += [{m: batch.x[m][i][batch.mask[m][i]].numpy() for m in modalities} for i in range(len(batch))]
        present = {m: mask.any(1) for m, mask in batch.mask.items()}
        predictions.append(pd.DataFrame(predicted(trained, trained.vectors(batch.to(settings.device())), present)))
    return drift.with_reliability(drift.describe(clips, stats), pd.concat(predictions, ignore_index=True))


class Candidate(NamedTuple):
    """A finished checkpoint of MODEL: its selection value and seed, its folder, and its model.json."""

    selection: float
    seed: int
    folder: Path
    config: CheckpointConfig


def best_candidate(params: Params, out: Path) -> Candidate:
    """The seed with the lowest validation selection value. Raises UserError where a seed is missing or of other
    data."""
    from qamoe.models.checkpoint_config import read_config

    if MODEL not in params.seeds:
        raise UserError(f"seeds names no {MODEL}; promotion judges {MODEL} alone.")
    data = data_digest(out)
    candidates = []
    for seed in params.seeds[MODEL]:
        folder = out / "train" / MODEL / str(seed)
        config = read_config(folder)
        if config is None:
            raise UserError(f"There is no finished checkpoint in {folder}; run the stage train first.")
        theirs = config.get("digests", {}).get("data")
        if theirs is None:
            raise UserError(f"{folder / 'model.json'} does not say what data it was trained on; run the stage train.")
        if theirs != data:
            raise UserError(f"{folder} was trained on other data than {out / 'preprocess'} holds; run the stage train.")
        candidates.append(Candidate(config["selection"], seed, folder, config))
    return min(candidates, key=lambda candidate: (candidate.selection, candidate.seed))


def gate_split(out: Path) -> tuple[str, "Store"]:
    """The split that promotion reads: gate, or valid where the corpus's own split leaves no room for one."""
    from qamoe.data.arrow_store import Store

    for split in ("gate", "valid"):
        store = Store(out / "preprocess" / f"{split}.arrow")
        if len(store):
            return split, store
    raise UserError("Neither the gate nor the validation split has a clip; a candidate cannot be judged.")


def fetched(name: str, version: str, config: Mapping[str, Any], folder: Path) -> "Trained":
    """The checkpoint of a registered version. Raises UserError where it is of another corpus than `config`."""
    from pydantic import ValidationError

    from qamoe.models import checkpoint
    from qamoe.registry import registry

    downloaded = registry.fetch(name, version, folder / "champion")
    theirs = checkpoint.read_config(downloaded)
    if theirs is None:
        raise UserError(f"Version {version} of {name} holds no {checkpoint.CONFIG}; it was not registered by promote.")
    registry.same_corpus(config, theirs, name, version)
    try:
        return checkpoint.load(downloaded, settings.device())
    except ValidationError as error:
        reason = error.errors()[0]
        key = ".".join(str(part) for part in reason["loc"])
        raise UserError(
            f"The champion of {name} (version {version}) is of other code: {key}, {reason['msg']}."
        ) from None


def _measured(
    params: Params, stats: Stats, rivals: list["Trained"], store: "Store", temporary: Path
) -> list["pd.DataFrame"]:
    """Predictions on the gate's slices, each model reading frames that its own training split standardised."""
    from qamoe.dataset.degraded_split import open_views
    from qamoe.degradation.views import references_from_stats
    from qamoe.evaluation import protocol
    from qamoe.models.checkpoint import shared_encoder

    device = settings.device()
    evaluation = params.evaluate.model_copy(update={"seed": params.registry.seed, "draws": params.registry.draws})
    slices = ["clean", "missing", "noise"] if len(rivals) > 1 else ["clean"]
    cells = [*protocol.plan(slices, evaluation), protocol.mixed(params.registry.seed, params.registry.draws)]
    groups = [rivals] if all(same_columns(r.config["stats"], stats) for r in rivals) else [[r] for r in rivals]
    predictions = []
    for number, group in enumerate(groups):
        of_group, modalities = group[0].config["stats"], tuple(group[0].config["modalities"])
        folder = temporary / str(number)
        same = same_columns(of_group, stats)
        standard = store if same else restandardised(store, stats, of_group, folder / "restandardised.arrow")
        views = protocol.views(cells)
        encoder = shared_encoder(group)
        digest = file_digest(standard.path)
        split = open_views(
            standard, views, modalities, references_from_stats(of_group), folder, digest, device, encoder=encoder
        )
        predictions += protocol.measure(group, split, cells, device)
    return predictions


def same_columns(a: Stats, b: Stats) -> bool:
    """Whether two stats.json standardise frames alike."""
    return all(frame_stats(a, m) == frame_stats(b, m) for m in a["modalities"] if m != "text")


def restandardised(store: "Store", stats: Stats, own: Stats, path: Path) -> "Store":
    """The same clips as a model of older data knew them: after an ingest, mean and deviation are others."""
    from qamoe.data.arrow_store import Store, write
    from qamoe.data.normalise import Columns, clean
    from qamoe.inference.predict import raw_frames

    streams = {m: Columns.from_json(frame_stats(own, m)) for m in own["modalities"] if m != "text"}

    def rows() -> Iterator[dict[str, Any]]:
        for row in range(len(store)):
            clip: dict[str, Any] = {field.name: None for field in store.schema}
            clip |= {"clip_id": store.clip_ids[row], "source": store.sources[row], "label": store.labels[row]}
            for m in ("text", "audio", "vision"):
                frames = store.sequence(m, row)
                clip[m] = clean(raw_frames(frames, frame_stats(stats, m)), streams[m]) if m in streams else frames
            yield clip

    write(path, store.schema, rows(), store.metadata)
    return Store(path)


def _raw_clips(store: "Store", stats: Stats, modalities: list[str]) -> "pd.DataFrame":
    """A few clips as the registered model takes them: token ids and raw frames, by clip id."""
    import pandas as pd

    from qamoe.inference.predict import raw_frames

    chosen = range(min(_COMPARED_CLIPS, len(store)))
    columns: dict[str, Any] = {}
    for m in modalities:
        if m == "text":
            columns["tokens"] = [store.sequence(m, row).tolist() for row in chosen]
        else:
            columns[m] = [raw_frames(store.sequence(m, row), frame_stats(stats, m)) for row in chosen]
    return pd.DataFrame(columns, index=[store.clip_ids[row] for row in chosen])
