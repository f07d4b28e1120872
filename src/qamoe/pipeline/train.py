"""Train the models on the normalised splits: artifacts/train/<model>/<seed>/.

The stage trains every model and seed of params.yaml, or the seeds of one model. Seeds run in parallel, with one thread
each. A seed that has finished with the same digests is kept; a killed one resumes after its last complete epoch. The
test split is not read. Under torchrun, all processes train one seed at a time, each on its share of every batch.

The same function trains all models on the same views, except that specialists train on views of their own cell, and
models whose block has `train` by these parameters (config/model_params.py).
"""

import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.model_names import specialist_cell, variant_base
from qamoe.config.model_params import for_model, has_own_views, lacks_of_base, train_changes
from qamoe.config.params import Params
from qamoe.data.stats import Stats, text_is_vectors
from qamoe.errors import UserError
from qamoe.models.checkpoint_config import read_config
from qamoe.pipeline import runner
from qamoe.pipeline.shared import data_digest, read_stats, refuse_unsuitable_kinds, remove_other_seeds
from qamoe.pipeline.source_dependencies import code_digest
from qamoe.process_lifetime import die_with_parent

if TYPE_CHECKING:
    from qamoe.data.arrow_store import Store
    from qamoe.training.distributed import BatchShare

Waiting = tuple[str, int, dict[str, str]]  # model, seed and digests of an unfinished training


def run(params: Params, out: Path, model: str | None = None) -> dict[str, Any]:
    """Train the seeds that params.yaml lists, except the finished ones.

    Returns the trained and the kept seeds, as MODEL/SEED. Raises UserError if an earlier stage has not run.
    """
    from qamoe.models import text_encoder_finetuned
    from qamoe.tracking.runs import runs_end_with_their_processes
    from qamoe.training.distributed import BatchShare, process_group

    stats = read_stats(out)
    names = [model] if model else list(params.seeds)
    if settings.under_dvc():
        _refuse_hidden_dependencies(params, names)
    of_model = {name: for_model(params, name) for name in names}
    for name, own in of_model.items():
        refuse_kinds(own, stats, name)
        cell = specialist_cell(name)
        refuse_unsuitable_kinds(stats, [cell[0]] if cell else [], f"seeds.{name}")
    if "text" in stats["modalities"] and not text_is_vectors(stats):  # raises UserError for an unusable encoder
        limit = params.preprocess.max_frames.text
        text_encoder_finetuned.architecture(
            params.models.encoders.text, limit, text_encoder_finetuned.vocabulary(stats)
        )
    process, processes, local_rank = settings.processes()
    share = BatchShare(process, processes, settings.batch_parts())
    with process_group(share, settings.device(), local_rank):
        waiting = share.once(partial(_prepare, of_model, stats, out))
        with runs_end_with_their_processes() if share.first else nullcontext():
            if waiting:
                _train_all(of_model, out, waiting, share)
        for name in names if share.first else ():
            if _has_own_states(params, name):
                shutil.rmtree(_states(params, out, name), ignore_errors=True)  # large, and no other model uses them
    trained = [f"{name}/{seed}" for name, seed, _ in waiting]
    listed = [f"{name}/{seed}" for name in names for seed in params.seeds[name]]
    return {"seeds": {"trained": trained, "kept": [seed for seed in listed if seed not in trained]}}


def _refuse_hidden_dependencies(params: Params, names: list[str]) -> None:
    """Raise UserError for a variant with a key that only its base has: DVC would not see a change there."""
    for name in names:
        key = lacks_of_base(params.models, name)
        if key is not None:
            base = variant_base(name)
            raise UserError(
                f"models.{name} lacks {key}, so DVC would not train it again if models.{base}.{key} changes: in"
                f" params.yaml write `{base}: &{base}` and `{name}: {{<<: *{base}, ...}}`; in experiments/, the"
                " difference is enough."
            )


def _prepare(of_model: dict[str, Params], stats: Stats, out: Path) -> list[Waiting]:
    """Return the unfinished trainings, and encode the text of their views so that training finds it."""
    folder = out / "train"
    for name, params in of_model.items():
        remove_other_seeds(folder / name, params.seeds[name])
    data = data_digest(out)
    listed = [
        (name, seed, training_digests(params, name, data))
        for name, params in of_model.items()
        for seed in params.seeds[name]
    ]
    waiting = [
        (name, seed, digests) for name, seed, digests in listed if not _finished(folder / name / str(seed), digests)
    ]
    runner.log.info("train: %d seeds to train, %d finished before", len(waiting), len(listed) - len(waiting))
    for name in {_states(of_model[name], out, name): name for name, _, _ in waiting}.values():
        open_splits(of_model[name], stats, out, name)
    return waiting


def refuse_kinds(params: Params, stats: Stats, name: str) -> None:
    """Raise UserError for a degradation of a model's training or selection that the corpus's text does not allow."""
    changes, common = train_changes(params.models, name), params.train.common
    for key, kinds in (("degrade", common.degrade.kinds), ("selection", common.selection.severities)):
        section = f"models.{name}.train" if key in changes else "train.common"
        last = "kinds" if key == "degrade" else "severities"
        refuse_unsuitable_kinds(stats, kinds, f"{section}.{key}.{last}")


def _train_all(of_model: dict[str, Params], out: Path, waiting: list[Waiting], share: "BatchShare") -> None:
    """Train all waiting seeds, in parallel if the machine has room."""
    side_by_side = settings.side_by_side(len(waiting))
    if side_by_side == 1 or share.processes > 1:
        for name, seed, digests in waiting:
            train_one(of_model[name], out, name, seed, digests, share)
        return
    level = runner.log.level
    with ProcessPoolExecutor(side_by_side, get_context("spawn"), initialise_worker, (level,)) as pool:
        futures = [
            pool.submit(train_one, of_model[name], out, name, seed, digests, share) for name, seed, digests in waiting
        ]
        try:
            for future in futures:
                future.result()
        except (KeyboardInterrupt, SystemExit):  # the pool would wait until its workers have finished
            for process in active_children():
                process.kill()
            raise


def training_digests(params: Params, name: str, data: str) -> dict[str, str]:
    """Return the digests of the parameters (those `for_model` gives), data and code that determine a checkpoint."""
    from qamoe.models import text_encoder_frozen as text
    from qamoe.models.factory import block_of

    block = block_of(params.models, name)
    values: list[Any] = [params.train, params.models.encoders, block, params.preprocess, params.extract.task]
    encoder = params.models.encoders.text
    if encoder.finetune or encoder.encoder != text.NAME:
        values.append(text.digest(encoder.encoder))
    return {"params": parameters.digest(*values), "data": data, "code": code_digest("qamoe.pipeline.train")}


def _has_own_states(params: Params, name: str) -> bool:
    return specialist_cell(name) is not None or has_own_views(params, name)


def _states(params: Params, out: Path, name: str) -> Path:
    """Return the folder of the encoded text of a model's views; a folder keeps the text of one list of views."""
    states = out / "states" / "train"
    return states / name if _has_own_states(params, name) else states


def open_splits(params: Params, stats: Stats, out: Path, name: str, states: Path | None = None) -> tuple[Any, Any, Any]:
    """Open the training split under a model's views and the validation split under its selection cells.

    params: those that `for_model` gives. states: the folder of the encoded text, by default one that all trainings
    with the same views share. Returns both splits and the cells.
    """
    from qamoe.data.arrow_store import SelectedRows, Store
    from qamoe.dataset.degraded_split import open_views
    from qamoe.degradation.spectrum import Spectrum
    from qamoe.degradation.views import View, references_from_stats
    from qamoe.training.selection import drawn_clips, selection_cells, specialist

    common = params.train.common
    text = params.models.encoders.text
    encoder = None if text.finetune else text.encoder
    if encoder is None:  # no encoded text is cached, so every epoch can have a new view
        one_per_epoch = common.degrade.model_copy(update={"views": common.epochs})
        common = common.model_copy(update={"degrade": one_per_epoch})
    degrade = common.degrade
    count = min(degrade.views, common.epochs)
    if degrade.spectrum == "paper":
        drawn: dict[str, Any] = {
            "spectrum": Spectrum(**degrade.paper.model_dump()),
            "batch": common.batch_size,
            "mask_revealed_share": degrade.mask_revealed_share,
        }
    else:
        drawn = {"drawn": degrade.kinds} | degrade.model_dump(exclude={"spectrum", "paper", "kinds", "views", "seed"})
    copies = {part: Store(out / "preprocess" / "copies" / f"{part}.arrow") for part in ("train", "valid")}
    if degrade.signal_share:
        drawn["copies"] = copies_by_modality(copies["train"])
    training = [View(degrade.seed, number, **drawn) for number in range(count)]
    seen = degrade.signal_share and degrade.clean_share < 1
    cells = selection_cells(common.selection, copies_by_modality(copies["valid"]) if seen else ())
    cell = specialist_cell(name)
    if cell is not None:
        training, cells = specialist(*cell, common)
    split = {part: Store(out / "preprocess" / f"{part}.arrow") for part in ("train", "valid")}
    data = {"train": data_digest(out), "valid": data_digest(out)}
    if common.clips is not None:
        key = f"models.{name}.train.clips" if "clips" in train_changes(params.models, name) else "train.common.clips"
        rows = drawn_clips(split["train"].clip_ids, common.clips, degrade.seed, key)
        split["train"] = SelectedRows(split["train"].path, rows)
        per_clip = copies["train"].metadata["copies"]
        of_rows = [row * per_clip + number for row in rows for number in range(per_clip)]
        copies["train"] = SelectedRows(copies["train"].path, of_rows)
        data["train"] = parameters.digest(data["train"], split["train"].clip_ids)
    if not len(split["valid"]):
        raise UserError(
            f"The validation split is empty ({split['valid'].path}); checkpoints are chosen on it, so at least one"
            " source must be in split valid."
        )
    shared = (tuple(stats["modalities"]), references_from_stats(stats), states or _states(params, out, name))
    train, valid = (
        open_views(split[part], views, *shared, data[part], settings.device(), encoder=encoder, copies=copies[part])
        for part, views in (("train", training), ("valid", cells.views))
    )
    return train, valid, cells


def copies_by_modality(copies: "Store") -> tuple[int, ...]:
    """Return how many damaged copies each modality of a clip has."""
    from qamoe.rng import MODALITIES

    return tuple(copies.metadata["copies"] * (m in copies.metadata["modalities"]) for m in MODALITIES)


def train_one(params: Params, out: Path, name: str, seed: int, digests: dict[str, str], share: "BatchShare") -> None:
    """Train one seed of one model into its folder and record it during training; may run in its own process."""
    from qamoe.dataset.degraded_split import restrict_threads
    from qamoe.tracking.runs import training_run
    from qamoe.training.trainer import Trainer, TrainingJob

    restrict_threads()
    stats = read_stats(out)
    train, valid, cells = open_splits(params, stats, out, name)
    folder = out / "train" / name / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    job = TrainingJob(name, seed, params, stats, train, valid, cells, digests, folder, settings.device(), share)
    with training_run(params, name, seed, digests, stats) as record:

        def on_epoch(line: dict[str, Any]) -> None:
            record.epoch(line)
            record.keep(line["epoch"], trainer.best["epoch"], trainer.ended(), trainer.save_unfinished)

        trainer = Trainer(job, on_epoch)
        trainer.run()
        record.finish(folder)


def initialise_worker(level: int) -> None:
    """Initialise a worker process of a stage: set its log level, go offline, and end with the stage."""
    import logging

    settings.go_offline()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    runner.log.setLevel(level)
    die_with_parent()


def _finished(folder: Path, digests: dict[str, str]) -> bool:
    try:
        config = read_config(folder)
    except UserError:  # a damaged checkpoint is trained again
        return False
    return config is not None and config.get("digests") == digests
