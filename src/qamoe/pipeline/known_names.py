"""The names in params.yaml, held against the registries that know them: corpora, degradations, slices and models.

config/ stands below those registries and takes any string for a name. A new corpus, kind or model is a line in its
registry and none here.
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

    Types and ranges are checked everywhere, names in `sections` (of CHECKS) or, without it, in all: those of train,
    models, seeds and evaluate import torch, which takes seconds that a command without models need not wait.
    """
    return checked(parameters.load(path), path, sections)


def checked(params: Params, path: Path, sections: Collection[str] | None = None) -> Params:
    """The same parameters. Raises UserError for an unknown name; `path` is where it is said to be."""
    for section in CHECKS if sections is None else sections:
        CHECKS[section](params, path)
    return params


def _check_corpus(params: Params, path: Path) -> None:
    from qamoe.data.readers import READERS

    _check_names(path, [("extract.corpus.kind", params.extract.corpus.kind)], READERS)


def _check_kinds(params: Params, path: Path) -> None:
    from qamoe.degradation.features import trainable_kinds

    common = params.train.common
    names = [(f"train.common.degrade.kinds.{place}", kind) for place, kind in enumerate(common.degrade.kinds)]
    names += [("a key of train.common.selection.severities", kind) for kind in common.selection.severities]
    _check_names(path, names, trainable_kinds())


def _check_blocks(params: Params, path: Path) -> None:
    """Each block is a model's, with the keys that its class knows; every model that has seeds has one.

    A specialist or an ablation may have one for DVC's sake, whose paths to parameters want it: qamoe's.
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
                f"{path}: models.{name} is {content}: a specialist or ablation has the block of models.{family(name)};"
                f" name that `{family(name)}: &{family(name)}` and write `{name}: *{family(name)}`."
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
    """The allowed names of models, as a sentence has them."""
    from qamoe.models.factory import MODELS

    return f"{', '.join(MODELS)}, specialist-clean, specialist-<kind>-<tenths> and ablation-<{'|'.join(ABLATIONS)}>"


def _check_slices(params: Params, path: Path) -> None:
    from qamoe.evaluation.protocol import slice_names

    names = [(f"evaluate.slices.{place}", name) for place, name in enumerate(params.evaluate.slices)]
    _check_names(path, names, slice_names())


def _check_names(path: Path, names: Iterable[tuple[str, str]], known: Collection[str]) -> None:
    """Refuse the first of `names`, each with its key in the file, that is not known."""
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
