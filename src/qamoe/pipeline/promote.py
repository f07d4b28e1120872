"""Promote a checkpoint to champion if it passes the promotion gate; this writes no DVC output.

Candidate and champion are measured on the gate split, which no other stage reads, and never on the test split. The
rules are in registry/gate.py; registry/registry.py sets the aliases and writes the records.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.model_names import family
from qamoe.config.params import Params
from qamoe.data.stats import Stats, frame_stats
from qamoe.errors import UserError
from qamoe.files import file_digest
from qamoe.models.checkpoint_config import CheckpointConfig
from qamoe.pipeline.shared import data_digest, read_stats, refuse_unsuitable_kinds

if TYPE_CHECKING:
    import pandas as pd

    from qamoe.data.arrow_store import Store
    from qamoe.degradation.views import View
    from qamoe.models.checkpoint import Trained
    from qamoe.registry.registry import Decision

_BATCH = 64  # clips
_COMPARED_CLIPS = 8  # on which the registered model must predict the same as the evaluated checkpoint


@dataclass(frozen=True)
class Chosen:
    """Which checkpoint is the candidate: of a model and a seed, of an MLflow run, or of a registered version.

    model, seed: of a training folder; without a seed the best of those in params.yaml. run, version: instead of them.
    """

    model: str = "qamoe"
    seed: int | None = None
    run: str | None = None
    version: int | None = None


BEST = Chosen()


def run(params: Params, out: Path, dry: bool = False, chosen: Chosen = BEST) -> None:
    """Promote or refuse the candidate and print the decision last; with `dry`, only print it.

    The decision is "unchanged" if the candidate is the champion already, was rolled back, or was refused before on the
    same evidence.
    """
    decision = decide(params, out, dry, chosen)
    for reason in decision.reasons:
        print(reason)
    if decision.run is not None:
        print(f"run: {decision.run}")
    outcome = f"would be {decision.outcome} (dry run)" if dry else decision.outcome
    print(f"decision: {outcome}", flush=True)


def decide(params: Params, out: Path, dry: bool = False, chosen: Chosen = BEST) -> "Decision":
    """Measure candidate and champion and apply the promotion gate; with `dry` nothing is registered or recorded.

    Raises UserError if an earlier stage has not run, if the candidate is none, or if the champion was trained on
    another corpus.
    """
    with tempfile.TemporaryDirectory() as temporary:
        return _decide(params, out, dry, chosen, Path(temporary))


def _decide(params: Params, out: Path, dry: bool, chosen: Chosen, temporary: Path) -> "Decision":
    from qamoe.evaluation.protocol import PROTOCOL
    from qamoe.models import checkpoint
    from qamoe.registry import registry
    from qamoe.registry.gate import GateMeasurements
    from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors
    from qamoe.tracking.runs import record_training

    stats = read_stats(out)
    refuse_unsuitable_kinds(stats, ("mixed",), "the promotion gate")
    name = params.registry.name
    split, store = gate_split(out)
    if chosen.run is None and chosen.version is None:
        candidate = trained_candidate(params, out, chosen)
    else:
        candidate = recorded_candidate(name, out, chosen, temporary)
    folder, config = candidate.folder, candidate.config
    described = f"{config['model']} seed {config['seed']}, selection {config['selection']:.4f}"
    print(f"candidate: {described}; judged on split {split}")
    client = connect()
    with store_errors_as_user_errors():
        if not dry:
            _repair(client, name, chosen)
        champion = registry.champion(client, name)
    print(f"champion: {f'version {champion.version} of {name}' if champion else f'none yet of {name}'}")
    gate_digest = _digest(store, copies := gate_copies(out, split))
    key = registry.gate_key(gate_digest, PROTOCOL, params.registry, champion)
    with store_errors_as_user_errors():
        decision = registry.existing_decision(client, name, checkpoint.digest(folder), key, champion)
    if decision is not None:
        return decision
    models = [checkpoint.load(folder, settings.device())]
    if champion is not None:
        models.append(download_version(name, champion.version, config, temporary, champion.digest))
    rows = _measure(params, stats, models, store, temporary)
    measurements = GateMeasurements(
        config,
        rows[0],
        rows[1] if champion else None,
        _raw_clips(store, stats, config["modalities"]),
        split,
        params.registry.coverage_90,
        params.registry.calibration_error,
        params.registry.tolerance,
        None if copies is None else _measure_copies(stats, models[0], store, copies, temporary),
        params.registry.trust_auroc,
        params.registry.harmless_warned,
    )
    if dry:
        print("dry run: nothing is registered or recorded, and no registered model is compared with the checkpoint")
        return registry.dry_run(measurements)
    data = registry.GateData(PROTOCOL, config["digests"]["data"], gate_digest)
    with store_errors_as_user_errors():
        run_id = record_training(client, folder, name)
        registry.keep_reference(client, run_id, drift_reference(models[0], out))
        decision = registry.submit(client, name, run_id, measurements, key, champion, data)
    if decision.outcome == "overtaken":
        print(f"another candidate became champion of {name} in the meantime; comparing with that one")
        return decide(params, out, chosen=chosen)
    return decision


def _repair(client: Any, name: str, chosen: Chosen) -> None:
    """Complete an interrupted promotion, and adopt a champion or a candidate that a person registered."""
    from qamoe.registry import registry
    from qamoe.tracking.mlflow_store import exclusive_lock

    with exclusive_lock():
        registry.finish(client, name)
    champion = registry.champion(client, name)
    for version in {str(chosen.version or ""), champion.version if champion else ""} - {""}:
        registry.adopt(client, name, version)


def drift_reference(candidate: "Trained", out: Path) -> "pd.DataFrame":
    """Describe the candidate's training and validation clips, not degraded, as the reference of registry/drift.py."""
    import pandas as pd

    from qamoe.data.arrow_store import Store
    from qamoe.degradation.views import uniform_view
    from qamoe.registry import drift

    clean = uniform_view("clean", 0.0, 0, 0)
    stores = [Store(out / "preprocess" / f"{split}.arrow") for split in ("train", "valid")]
    parts = [describe_split(candidate, store, clean).assign(**{drift.SOURCE: store.sources}) for store in stores]
    return pd.concat(parts, ignore_index=True)


def describe_split(trained: "Trained", store: "Store", view: "View") -> "pd.DataFrame":
    """Return the drift features of a split under a view, one row per clip: input statistics and a model's r."""
    import pandas as pd

    from qamoe.dataset.degraded_split import DegradedSplit
    from qamoe.degradation.views import references_from_stats
    from qamoe.evaluation.protocol import predicted
    from qamoe.registry import drift

    stats, modalities = trained.config["stats"], tuple(trained.config["modalities"])
    split = DegradedSplit(store, (view,), modalities, references_from_stats(stats), None)
    clips, predictions = [], []
    for start in range(0, len(store), _BATCH):
        batch, _, _ = split.degraded(0, range(start, min(start + _BATCH, len(store))))
        clips += [{m: batch.x[m][i][batch.mask[m][i]].numpy() for m in modalities} for i in range(len(batch))]
        present = {m: mask.any(1) for m, mask in batch.mask.items()}
        predictions.append(pd.DataFrame(predicted(trained, trained.vectors(batch.to(settings.device())), present)))
    return drift.with_reliability(drift.describe(clips, stats), pd.concat(predictions, ignore_index=True))


class Candidate(NamedTuple):
    """A finished checkpoint: its selection value and seed, its folder and its model.json."""

    selection: float
    seed: int
    folder: Path
    config: CheckpointConfig


def trained_candidate(params: Params, out: Path, chosen: Chosen = BEST) -> Candidate:
    """Return the checkpoint of the chosen seed, or that with the lowest selection value on the validation split.

    Raises UserError if the model is not in params.yaml, or the checkpoint of a seed is missing or was trained on other
    data.
    """
    seeds = params.seeds.get(chosen.model)
    if seeds is None:
        raise UserError(
            f"--model is {chosen.model!r}; seeds of params.yaml lists the models {', '.join(params.seeds)}."
        )
    if chosen.seed is not None and chosen.seed not in seeds:
        raise UserError(
            f"--seed is {chosen.seed}; seeds of params.yaml lists for {chosen.model}: {', '.join(map(str, seeds))}."
        )
    folders = [out / "train" / chosen.model / str(seed) for seed in (seeds if chosen.seed is None else [chosen.seed])]
    candidates = [_candidate(folder, out) for folder in folders]
    return min(candidates, key=lambda candidate: (candidate.selection, candidate.seed))


def recorded_candidate(name: str, out: Path, chosen: Chosen, temporary: Path) -> Candidate:
    """Download the checkpoint of the chosen MLflow run, or of the chosen version of a registered model.

    Raises UserError if it was not recorded by qamoe, or was trained on other data.
    """
    from qamoe.registry import registry
    from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors

    client, to = connect(), temporary / "candidate"
    with store_errors_as_user_errors():
        if chosen.version is not None:
            digest = registry.version_digest(client, name, str(chosen.version))
            folder = registry.fetch(name, str(chosen.version), to, digest)
        else:
            assert chosen.run is not None
            folder = registry.fetch_run(client, chosen.run, to)
    return _candidate(folder, out, f"version {chosen.version} of {name}" if chosen.version else f"run {chosen.run}")


def _candidate(folder: Path, out: Path, source: str | None = None) -> Candidate:
    """Read and check the model.json of a candidate; source: how an error names it, else by its folder."""
    from qamoe.models.checkpoint_config import CONFIG, check, read_config

    source = source or str(folder)
    config = read_config(folder)
    if config is None:
        raise UserError(f"{source} does not hold a finished checkpoint; run the stage train first.")
    training_data = config.get("digests", {}).get("data")
    if training_data is None:
        raise UserError(f"{folder / 'model.json'} has no digest of its training data; run the stage train.")
    if training_data != data_digest(out):
        raise UserError(f"{source} was trained on other data than {out / 'preprocess'} holds; run the stage train.")
    check(config, folder / CONFIG)
    if family(config["model"]) == "oracle":
        raise UserError(
            f"The model {config['model']} reads how each clip was degraded, which no recording tells; it cannot be"
            " promoted."
        )
    return Candidate(config["selection"], config["seed"], folder, config)


def gate_split(out: Path) -> tuple[str, "Store"]:
    """Open the split that promotion reads: the gate split, or valid if the corpus's own splits leave no room for it."""
    from qamoe.data.arrow_store import Store

    for split in ("gate", "valid"):
        store = Store(out / "preprocess" / f"{split}.arrow")
        if len(store):
            return split, store
    raise UserError(
        f"The gate split and the validation split in {out / 'preprocess'} are empty; promotion needs one of them."
    )


def download_version(
    name: str, version: str, config: Mapping[str, Any], folder: Path, digest: str | None = None
) -> "Trained":
    """Load the checkpoint of a registered version. Raises UserError if its corpus is not the one of `config`."""
    from pydantic import ValidationError

    from qamoe.models import checkpoint
    from qamoe.registry import registry

    downloaded = registry.fetch(name, version, folder / "champion", digest)
    registered_config = checkpoint.read_config(downloaded)
    if registered_config is None:
        raise UserError(f"Version {version} of {name} has no {checkpoint.CONFIG}; it was not registered by promote.")
    registry.same_corpus(config, registered_config, name, version)
    try:
        return checkpoint.load(downloaded, settings.device())
    except ValidationError as error:
        reason = error.errors()[0]
        key = ".".join(str(part) for part in reason["loc"])
        raise UserError(
            f"Version {version} of {name} was saved by other code and cannot be loaded: {key}: {reason['msg']}."
        ) from None


def _measure(
    params: Params, stats: Stats, models: list["Trained"], store: "Store", temporary: Path
) -> list["pd.DataFrame"]:
    """Predict the slices of the promotion gate; each model reads frames standardised by its own training split."""
    from qamoe.dataset.degraded_split import open_views
    from qamoe.degradation.views import references_from_stats
    from qamoe.evaluation import protocol
    from qamoe.models.checkpoint import shared_encoder

    device = settings.device()
    evaluation = params.evaluate.model_copy(update={"seed": params.registry.seed, "draws": params.registry.draws})
    slices = ["clean", "missing", "noise"] if len(models) > 1 else ["clean"]
    cells = [*protocol.plan(slices, evaluation), protocol.mixed(params.registry.seed, params.registry.draws)]
    together = all(same_standardisation(model.config["stats"], stats) for model in models)
    groups = [models] if together else [[model] for model in models]
    predictions = []
    for number, group in enumerate(groups):
        training_stats, modalities = group[0].config["stats"], tuple(group[0].config["modalities"])
        folder = temporary / str(number)
        group_store = store
        if not same_standardisation(training_stats, stats):
            group_store = restandardise(store, stats, training_stats, folder / "restandardised.arrow")
        inputs = (references_from_stats(training_stats), folder, file_digest(group_store.path), device)
        encoder = shared_encoder(group)
        split = open_views(group_store, protocol.views(cells), modalities, *inputs, encoder=encoder)
        predictions += protocol.measure(group, split, cells, device)
    return predictions


def gate_copies(out: Path, split: str) -> "Store | None":
    """Return the damaged copies of the gate clips; None if there are none, or if validation clips stand in for them."""
    from qamoe.data.arrow_store import Store

    path = out / "preprocess" / "copies" / "gate.arrow"
    copies = Store(path) if split == "gate" and path.is_file() else None
    return copies if copies is not None and len(copies) else None


def _digest(store: "Store", copies: "Store | None") -> str:
    """Return the digest of the clips that promotion reads."""
    if copies is None:
        return file_digest(store.path)
    return parameters.digest(file_digest(store.path), file_digest(copies.path))


def _measure_copies(
    stats: Stats, candidate: "Trained", store: "Store", copies: "Store", temporary: Path
) -> "pd.DataFrame | None":
    """Predict the damaged copies of the gate clips, in which all modalities are damaged together.

    Returns None for a candidate whose training clips have other means and deviations than these copies.
    """
    from qamoe.dataset.degraded_split import copies_by_modality, open_views
    from qamoe.degradation.features import COPY
    from qamoe.degradation.views import View, references_from_stats
    from qamoe.evaluation import protocol
    from qamoe.models.checkpoint import shared_encoder

    if not same_standardisation(candidate.config["stats"], stats):
        return None
    counts = copies_by_modality(copies)
    views = tuple(View(0, number, copies=counts, copy=number) for number in range(max(counts)))
    cell = protocol.Cell("copies", "copies", COPY, nan, views)
    split = open_views(
        store,
        views,
        tuple(candidate.config["modalities"]),
        references_from_stats(stats),
        temporary / "copies",
        file_digest(copies.path),
        settings.device(),
        encoder=shared_encoder([candidate]),
        copies=copies,
    )
    (rows,) = protocol.measure([candidate], split, [cell], settings.device())
    return rows


def same_standardisation(a: Stats, b: Stats) -> bool:
    """Return whether two stats.json standardise frames in the same way."""
    return all(frame_stats(a, m) == frame_stats(b, m) for m in a["modalities"] if m != "text")


def restandardise(store: "Store", stats: Stats, target: Stats, path: Path) -> "Store":
    """Write the clips of `store` to `path`, standardised by `target` instead of `stats`, and open the new store.

    A model trained before an ingest needs this, because the ingest changed mean and deviation of the columns.
    """
    from qamoe.data.arrow_store import Store, write
    from qamoe.data.normalise import Columns, clean
    from qamoe.inference.predict import raw_frames

    streams = {m: Columns.from_json(frame_stats(target, m)) for m in target["modalities"] if m != "text"}

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
    """Return a few clips as inputs of the registered model: token ids and raw frames, by clip id."""
    import pandas as pd

    from qamoe.inference.predict import raw_frames

    compared = range(min(_COMPARED_CLIPS, len(store)))
    columns: dict[str, Any] = {}
    for m in modalities:
        if m == "text":
            columns["tokens"] = [store.sequence(m, row).tolist() for row in compared]
        else:
            columns[m] = [raw_frames(store.sequence(m, row), frame_stats(stats, m)) for row in compared]
    return pd.DataFrame(columns, index=[store.clip_ids[row] for row in compared])
