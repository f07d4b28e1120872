"""Check the names in params.yaml against the registries of corpora, degradations, slices and models.

Package config may not import those registries, so it accepts any string as a name. A new corpus, kind or model needs a
line in its registry and none here.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import ValidationError

from qamoe.config import params as parameters
from qamoe.config.model_names import ABLATIONS, family, specialist_cell
from qamoe.config.params import Params
from qamoe.errors import UserError


def load_params(path: Path, sections: Collection[str] | None = None) -> Params:
    """Read params.yaml. Raises UserError with key, value and allowed values of the first mistake.

    Types and ranges are always checked. Names are checked in `sections` (keys of CHECKS), by default in all of them.
    The checks of train, models, seeds and evaluate import torch, which takes seconds; a command without models skips
    them.
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

    common = params.train.common
    names = [(f"train.common.degrade.kinds.{index}", kind) for index, kind in enumerate(common.degrade.kinds)]
    names += [("a key of train.common.selection.severities", kind) for kind in common.selection.severities]
    _refuse_unknown(path, names, trainable_kinds())


def _check_blocks(params: Params, path: Path) -> None:
    """Check that each block belongs to a model and has its keys, and that each model with seeds has a block.

    DVC needs a block for each model of its stages. A specialist or an ablation may therefore repeat the block of qamoe.
    """
    from qamoe.models.factory import MODELS

    for name, content in params.models.blocks.items():
        if family(name) not in MODELS:
            raise UserError(f"{path}: unknown key models.{name}; the models are {_models()}.")
        try:
            MODELS[family(name)].Block.model_validate(content)
        except ValidationError as invalid:
            raise parameters.first_mistake(invalid, path, "models", name) from None
        if content != params.models.blocks.get(family(name)):
            raise UserError(
                f"{path}: models.{name} is {parameters.shortened(content)}; a specialist or ablation must repeat"
                f" models.{family(name)}:"
                f" write `{family(name)}: &{family(name)}` there and `{name}: *{family(name)}` here."
            )
    for name in map(family, params.seeds):
        if name in MODELS and name not in params.models.blocks:
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

    return f"{', '.join(MODELS)}, specialist-clean, specialist-<kind>-<tenths> and ablation-<{'|'.join(ABLATIONS)}>"


def _check_slices(params: Params, path: Path) -> None:
    from qamoe.evaluation.protocol import slice_names

    names = [(f"evaluate.slices.{index}", name) for index, name in enumerate(params.evaluate.slices)]
    _refuse_unknown(path, names, slice_names())


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
}
