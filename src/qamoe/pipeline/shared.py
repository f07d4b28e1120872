"""Read the output of preprocess for later stages: its statistics, the kinds its text allows, a digest of its data."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from qamoe.config.params import LANDSCAPE
from qamoe.data.stats import Stats, text_is_vectors
from qamoe.errors import UserError
from qamoe.files import file_digest


def read_stats(out: Path) -> Stats:
    """Read stats.json of the stage preprocess. Raises UserError if the stage has not run."""
    path = out / "preprocess" / "stats.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage preprocess first.") from None


def refuse_unsuitable_kinds(stats: Stats, kinds: Iterable[str], key: str) -> None:
    """Raise UserError for a kind (or slice) that the corpus's text does not allow; `key` of params.yaml lists it.

    Stored text vectors allow no kind that removes words, because they were computed from the whole sentence: the other
    vectors still carry a word that is removed. The paper's spectrum has noise in every vector and loses whole
    modalities. Words and token ids allow all kinds but `missing_features`.
    """
    from qamoe.degradation.features import PAPER_NOISE

    vectors = "text" in stats["modalities"] and text_is_vectors(stats)
    allowed = ("clean", "missing_features", PAPER_NOISE, LANDSCAPE)
    wrong = [kind for kind in kinds if (kind not in allowed if vectors else kind == "missing_features")]
    if wrong and vectors:
        raise UserError(
            f"{key}: {wrong[0]!r} cannot be used, because the text of this corpus is stored vectors; allowed:"
            f" {', '.join(allowed)} (see experiments/vectors.yaml)."
        )
    if wrong:
        raise UserError(
            f"{key}: {wrong[0]!r} is only for a corpus whose text is stored vectors; this one has words or token ids,"
            " so use 'missing'."
        )


def data_digest(out: Path) -> str:
    """Return SHA-256 over the data that training reads: splits train and valid, their statistics and damaged copies.

    Never over the test split.
    """
    digest = hashlib.sha256()
    for name in ("train.arrow", "valid.arrow", "stats.json", "copies/train.arrow", "copies/valid.arrow"):
        digest.update(file_digest(out / "preprocess" / name).encode())
    return digest.hexdigest()


def remove_other_seeds(folder: Path, seeds: tuple[int, ...]) -> None:
    """Delete the folders of seeds that params.yaml no longer lists; DVC would keep them in a persisted output."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir() and child.name not in {str(seed) for seed in seeds}:
            shutil.rmtree(child)
