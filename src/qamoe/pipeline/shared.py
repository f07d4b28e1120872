"""What the stages after preprocess read of it: statistics, which kinds suit its text, and a digest of its data."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from qamoe.data.stats import Stats, text_is_vectors
from qamoe.errors import UserError
from qamoe.files import file_digest


def read_stats(out: Path) -> Stats:
    """stats.json of the stage preprocess. Raises UserError where it has not run."""
    path = out / "preprocess" / "stats.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"There is no {path}; run the stage preprocess first.") from None


def refuse_other_kinds(stats: Stats, kinds: Iterable[str], key: str) -> None:
    """Raise UserError for a kind (or slice) that does not suit the corpus's text; `key` of params.yaml names it.

    Stored vectors allow `missing_features` alone, since the vectors of a clean sentence still carry the words that are
    lost; words and token ids allow all other kinds.
    """
    vectors = "text" in stats["modalities"] and text_is_vectors(stats)
    allowed = ("clean", "missing_features")
    wrong = [kind for kind in kinds if (kind not in allowed if vectors else kind == "missing_features")]
    if wrong and vectors:
        raise UserError(
            f"{key} names {wrong[0]}; the text of this corpus is stored vectors, and allowed with them are"
            f" {' and '.join(allowed)} (experiments/vectors.yaml)."
        )
    if wrong:
        raise UserError(
            f"{key} names {wrong[0]}, which is for a corpus whose text is stored vectors; this one has words or token"
            " ids, which missing takes away."
        )


def data_digest(out: Path) -> str:
    """SHA-256 over what training reads: train, valid and their statistics; never test."""
    digest = hashlib.sha256()
    for name in ("train.arrow", "valid.arrow", "stats.json"):
        digest.update(file_digest(out / "preprocess" / name).encode())
    return digest.hexdigest()


def remove_other_seeds(folder: Path, seeds: tuple[int, ...]) -> None:
    """Delete the folders of seeds that params.yaml no longer lists: DVC keeps what a persisted output holds."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir() and child.name not in {str(seed) for seed in seeds}:
            shutil.rmtree(child)
