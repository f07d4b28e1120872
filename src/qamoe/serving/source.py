"""Where a served model comes from: a training folder, or a version of the registry."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qamoe import settings
from qamoe.degradation.frames import Reference
from qamoe.degradation.views import View, apply, references
from qamoe.errors import Refused
from qamoe.features import extractors
from qamoe.params import Block
from qamoe.serving import predict
from qamoe.training import checkpoint
from qamoe.training.checkpoint import Trained

CHAMPION = "models:/qa-moe@champion"
_SEED = 2026  # of the degradations that the page shows; a clip's draws are otherwise its own
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Served:
    """A model in use. `name` is what people may see of where it came from; `digest` is the checkpoint's."""

    trained: Trained
    references: dict[str, Reference]
    device: str
    name: str
    digest: str
    reference: pd.DataFrame | None = None  # what the clips it was made of are like, of a version that has it

    def predict(self, rows: pd.DataFrame, damage: dict[str, tuple[str, float]] | None = None) -> pd.DataFrame:
        """qamoe.serving.predict; `damage` names kind and severity of the modalities that are degraded before it."""
        if not damage:
            return predict.predict(self.trained, rows, self.device)
        both = [damage.get(m, ("clean", 0.0)) for m in predict.MODALITIES]
        view = View(_SEED, 0, kinds=tuple(k for k, _ in both), severities=tuple(s for _, s in both))
        return predict.predict(self.trained, rows, self.device, lambda batch: apply(batch, view, self.references)[0])

    def warm_up(self) -> None:
        """Predict once, so that the first clip with words does not wait for the text encoder."""
        self.predict(pd.DataFrame({"text": ["ready"]}))

    def extractors(self) -> dict[str, Block]:
        return extractors_of(self.trained.config)


def extractors_of(config: dict[str, Any]) -> dict[str, Block]:
    """The settings of each extractor that media can be given to; none where a corpus brought its features. `config` is
    a model.json."""
    streams = [m for m in config["modalities"] if m != "text" and config["stats"][m]["rate"]]
    return {m: extractors.settings(m, config["extract"][m]) for m in streams}


def open_model(model: str, folder: Path | None) -> Served:
    """Load a model.

    `folder` wins over `model`, which is models:/NAME@ALIAS or models:/NAME/VERSION. Raises Refused where there is
    no such thing.
    """
    device = settings.device()
    if folder is not None:
        trained, name = checkpoint.load(folder, device), "/".join(folder.resolve().parts[-2:])
        digest, reference = checkpoint.digest(folder), None
    else:
        with tempfile.TemporaryDirectory() as temporary:
            place, name, reference = _fetched(model, Path(temporary))
            trained, digest = checkpoint.load(place, device), checkpoint.digest(place)
    return Served(trained, references(trained.config["stats"]), device, name, digest, reference)


def _fetched(model: str, folder: Path) -> tuple[Path, str, pd.DataFrame | None]:
    from qamoe.records import registry
    from qamoe.records.store import answering, connect

    asked = _REGISTERED.fullmatch(model)
    if asked is None:
        raise Refused(f"--model {model!r} is none of models:/NAME@ALIAS and models:/NAME/VERSION.")
    name, version = asked["name"], asked["version"]
    advice = "; --folder artifacts/train/qamoe/1 serves a trained checkpoint without records"
    client = connect(advice)
    with answering(advice):
        if version is None:
            version = client.get_model_version_by_alias(name, asked["alias"]).version
        place = registry.fetch(name, version, folder)
        reference = registry.reference(client, name, version, folder)
    label = f"{name} version {version}"
    return place, f"{label} ({asked['alias']})" if asked["alias"] else label, reference
