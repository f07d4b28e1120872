"""Check the names in params.yaml against the registries of corpora, degradations, slices and models.

Package config may not import those registries, so it accepts any string as a name. A new corpus, kind or model needs a
line in its registry and none here.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qamoe.config import params as parameters
from qamoe.config.block import Block
from qamoe.config.model_names import ABLATIONS, ablated, family, specialist_cell, variant_base
from qamoe.config.model_params import block_content, for_model, train_changes
from qamoe.config.overlay import overlaid
from qamoe.config.params import LANDSCAPE, Encoders, Params, TrainCommon
from qamoe.config.search_space import DEGRADED_FROM, Value, nested, value_at
from qamoe.errors import UserError


def load_params(path: Path, sections: Collection[str] | None = None) -> Params:
    """Read params.yaml. Raises UserError with key, value and allowed values of the first mistake.

    Types and ranges are always checked. Names are checked in `sections` (keys of CHECKS), by default in all of them.
    The checks of train, models, seeds, evaluate and tune import torch, which takes seconds; a command without models
    skips them.
    """
    return check_names(parameters.load(path), path, sections)


def check_names(params: Params, path: Path, sections: Collection[str] | None = None) -> Params:
    """Return the same parameters. Raises UserError for an unknown name; the message names the file `path`."""
    for section in CHECKS if sections is None else sections:
        CHECKS[section](params, path)
    return params


def _check_corpus(params: Params, path: Path) -> None:
    from qamoe.data.readers import READERS

    _refuse_unknown(path, [("extract.corpus.kind", params.extract.corpus.kind)], READERS)


def _check_kinds(params: Params, path: Path) -> None:
    from qamoe.degradation.features import trainable_kinds

    of_model = {f"models.{name}.train": own for name in params.models.blocks if (own := _for_model(params, name, path))}
    for key, common in {"train.common": params.train.common, **of_model}.items():
        kinds = [(f"{key}.degrade.kinds.{index}", kind) for index, kind in enumerate(common.degrade.kinds)]
        _refuse_unknown(path, kinds, trainable_kinds())
        selected = [(f"a key of {key}.selection.severities", kind) for kind in common.selection.severities]
        _refuse_unknown(path, selected, (*trainable_kinds(), LANDSCAPE))


def _for_model(params: Params, name: str, path: Path) -> TrainCommon | None:
    """Return the train.common of a model whose block changes it. Raises UserError for a key or value it cannot have."""
    if not train_changes(params.models, name):
        return None
    try:
        return for_model(params, name).train.common
    except ValidationError as invalid:
        raise parameters.first_mistake(invalid, path, "models", name, "train") from None


def _check_blocks(params: Params, path: Path) -> None:
    """Check that each block belongs to a model and has its keys, and that each model with seeds has a block.

    DVC needs a block for each model of its stages. A specialist or an ablation may therefore repeat the block of qamoe.
    The block of a variant and `train` in a block are checked as they change that of the base and train.common.
    """
    from qamoe.models.factory import MODELS

    for name, content in params.models.blocks.items():
        if family(name) not in MODELS:
            raise UserError(f"{path}: unknown key models.{name}; the models are {_models()}.")
        if family(name) not in params.models.blocks:
            raise UserError(f"{path}: key models.{family(name)} is missing; models.{name} changes it.")
        try:
            MODELS[family(name)].Block.model_validate(block_content(params.models, name))
        except ValidationError as invalid:
            raise parameters.first_mistake(invalid, path, "models", name) from None
        _for_model(params, name, path)
        if (specialist_cell(name) or ablated(name)) and content != params.models.blocks.get(family(name)):
            raise UserError(
                f"{path}: models.{name} is {parameters.shortened(content)}; a specialist or ablation must repeat"
                f" models.{family(name)}:"
                f" write `{family(name)}: &{family(name)}` there and `{name}: *{family(name)}` here."
            )
    for model in params.seeds:
        name = model if variant_base(model) else family(model)
        if family(name) in MODELS and name not in params.models.blocks:
            raise UserError(f"{path}: key models.{name} is missing.")


def _check_seeds(params: Params, path: Path) -> None:
    from qamoe.degradation.features import trainable_kinds
    from qamoe.models.factory import MODELS

    for name in params.seeds:
        cell = specialist_cell(name)
        if family(name) not in MODELS or (cell is not None and cell[0] not in ("clean", *trainable_kinds())):
            raise UserError(f"{path}: seeds: unknown key {name}; the models are {_models()}.")


def _models() -> str:
    """Return the allowed model names for an error message."""
    from qamoe.models.factory import MODELS

    return (
        f"{', '.join(MODELS)}, variants <model>--<label> of these (and of nothing else; at most 40 characters),"
        f" specialist-clean, specialist-<kind>-<tenths> and ablation-<{'|'.join(ABLATIONS)}>"
    )


def _check_slices(params: Params, path: Path) -> None:
    from qamoe.evaluation.protocol import slice_names

    names = [(f"evaluate.slices.{index}", name) for index, name in enumerate(params.evaluate.slices)]
    _refuse_unknown(path, names, slice_names())


def _check_tune(params: Params, path: Path) -> None:
    """Check that the search has a model, that its space has parameters of it, and that its objectives are defined."""
    from qamoe.degradation.features import trainable_kinds
    from qamoe.models.factory import MODELS

    model, cell = family(params.tune.model), specialist_cell(params.tune.model)
    if model not in MODELS or (cell is not None and cell[0] not in ("clean", *trainable_kinds())):
        raise UserError(f"{path}: tune.model is {params.tune.model!r}; the models are {_models()}.")
    owner = params.tune.model if variant_base(params.tune.model) else model
    for name in (model, owner):
        if name not in params.models.blocks:
            raise UserError(f"{path}: tune.model is {params.tune.model!r}, but key models.{name} is missing.")
    content = params.model_dump(mode="json")
    content["models"][owner] = block_content(params.models, owner)
    blocks: dict[str, type[Block]] = {"train.common": TrainCommon, "models.encoders": Encoders}
    if common := _for_model(params, owner, path):
        content["models"][owner]["train"] = common.model_dump(mode="json")
        blocks[f"models.{owner}.train"] = TrainCommon
    blocks[f"models.{owner}"] = MODELS[model].Block
    for name in params.tune.space:
        _refuse_hidden(params, path, name, owner)
        _check_searched(params, path, name, content, blocks)
    _check_objectives(params, path, cell is not None, common or params.train.common)


def _refuse_hidden(params: Params, path: Path, name: str, owner: str) -> None:
    """Raise UserError for a parameter of train.common that the searched model's block sets to something else."""
    inner = name.removeprefix("train.common.")
    if inner == name:
        return
    with suppress(KeyError):
        value_at(train_changes(params.models, owner), inner)
        raise UserError(f"{path}: tune.space.{name} has no effect; search models.{owner}.train.{inner}, which is set.")


def _check_searched(
    params: Params, path: Path, name: str, content: Mapping[str, Any], blocks: Mapping[str, type[Block]]
) -> None:
    """Raise UserError if the search cannot vary that parameter over its range."""
    key = f"tune.space.{name}"
    block = next((block for block in blocks if name.startswith(f"{block}.")), None)
    if block is None:
        raise UserError(f"{path}: unknown key {key}; the search of {params.tune.model} varies {', '.join(blocks)}.")
    try:
        value = value_at(content, name)
    except KeyError:
        known = ", ".join(_scalars(value_at(content, block))) or "none"
        raise UserError(f"{path}: unknown key {key}; the parameters of {block} are {known}.") from None
    inner = name.removeprefix(f"{block}.")
    if blocks[block] is TrainCommon and (inner == "epochs" or inner.startswith("selection.")):
        raise UserError(f"{path}: {key} cannot be searched; every trial has tune.epochs and the same selection cells.")
    if not isinstance(value, Value):
        raise UserError(
            f"{path}: {key} is {parameters.shortened(value)}; the search varies numbers, words and truth values only."
        )
    alone = not any(other != name and other.startswith(f"{block}.") for other in params.tune.space)
    present = {key: value for key, value in value_at(content, block).items() if f"{block}.{key}" not in blocks}
    for extreme in params.tune.space[name].extremes:
        try:
            blocks[block].model_validate(overlaid(present, nested({inner: extreme})))
        except ValidationError as invalid:
            error = invalid.errors()[0]
            # A rule about several parameters holds or not by trial, if the search varies several.
            if error["loc"] or alone:
                message = error["msg"].removeprefix("Value error, ")
                raise UserError(f"{path}: {key} has {extreme!r}: {message[0].lower() + message[1:]}.") from None


def _scalars(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the numbers, words and truth values."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, Value):
            yield f"{prefix}{key}"


def _check_objectives(params: Params, path: Path, specialist: bool, common: TrainCommon) -> None:
    """Raise UserError for an objective that the model or the selection cells do not have."""
    from qamoe.models.factory import MODELS

    tune = params.tune
    if specialist and tune.objectives != ("error",):
        raise UserError(
            f"{path}: tune.objectives is {list(tune.objectives)}; {tune.model} has one selection cell, so only"
            " [error] is allowed."
        )
    if "trust" in tune.objectives and not MODELS[family(tune.model)].estimates_reliability:
        with_r = ", ".join(name for name, model in MODELS.items() if model.estimates_reliability)
        raise UserError(
            f"{path}: tune.objectives has trust, but {tune.model} has no r; models with r are {with_r}, and the"
            " ablations of qamoe."
        )
    levels = {level for levels in common.selection.severities.values() for level in levels}
    needed = {"clean": "0", "degraded": "above 0", "trust": f"0 and {DEGRADED_FROM:g} or above"}
    missing = {
        "clean": 0 not in levels,
        "degraded": max(levels) == 0,
        "trust": 0 not in levels or max(levels) < DEGRADED_FROM,
    }
    for objective in tune.objectives:
        if missing.get(objective):
            raise UserError(
                f"{path}: tune.objectives has {objective}, which needs severity {needed[objective]}, but"
                f" train.common.selection.severities has {', '.join(f'{level:g}' for level in sorted(levels))}."
            )


def _refuse_unknown(path: Path, names: Iterable[tuple[str, str]], known: Collection[str]) -> None:
    """Raise UserError for the first unknown name; `names` are (key in the file, name)."""
    for key, name in names:
        if name not in known:
            *first, last = map(repr, known)
            raise UserError(f"{path}: {key} is {name!r}: input should be {', '.join(first)} or {last}.")


CHECKS = {
    "extract": _check_corpus,
    "train": _check_kinds,
    "models": _check_blocks,
    "seeds": _check_seeds,
    "evaluate": _check_slices,
    "tune": _check_tune,
}
