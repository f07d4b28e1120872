"""Where a served model comes from: a training folder, or a version of the registry.

It is found before it is loaded: loading takes seconds, in which its extractors can get ready.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qamoe.config import settings
from qamoe.config.block import Block
from qamoe.data.stats import text_is_vectors
from qamoe.errors import UserError
from qamoe.extractors.registry import extractors_of

if TYPE_CHECKING:
    import pandas as pd

    from qamoe.degradation.features import Reference
    from qamoe.models.checkpoint import Trained

_SEED = 2026  # of the degradations that the page shows; a clip's draws are otherwise its own
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_ADVICE = "; --folder artifacts/train/qamoe/1 serves a trained checkpoint without records"


@dataclass(frozen=True)
class LocatedModel:
    """A checkpoint's folder, what people may see of where it came from, and name and version of a registered one."""

    folder: Path
    name: str
    registered: tuple[str, str] | None = None


@dataclass(frozen=True)
class Served:
    """A model in use. `name` and `registered` are those of LocatedModel; `digest` is the checkpoint's."""

    trained: "Trained"
    references: dict[str, "Reference"]
    device: str
    name: str
    digest: str
    registered: tuple[str, str] | None = None

    def predict(self, rows: "pd.DataFrame", damage: dict[str, tuple[str, float]] | None = None) -> "pd.DataFrame":
        """qamoe.inference.predict; `damage` names kind and severity of the modalities that are degraded before it."""
        from qamoe.degradation.views import View, apply
        from qamoe.inference import predict

        if not damage:
            return predict.predict(self.trained, rows, self.device)
        both = [damage.get(m, ("clean", 0.0)) for m in predict.MODALITIES]
        view = View(_SEED, 0, kinds=tuple(k for k, _ in both), severities=tuple(s for _, s in both))
        return predict.predict(self.trained, rows, self.device, lambda batch: apply(batch, view, self.references)[0])

    def warm_up(self) -> None:
        """Predict once, so that the first clip with words does not wait for the text encoder."""
        import pandas as pd

        if not text_is_vectors(self.trained.config["stats"]):
            self.predict(pd.DataFrame({"text": ["ready"]}))

    @cached_property
    def extractors(self) -> dict[str, Block]:
        return extractors_of(self.trained.config)

    def reference(self) -> "pd.DataFrame | None":
        """What the clips it was made of are like, of a registered version that has it."""
        from qamoe.registry import registry
        from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors

        if self.registered is None:
            return None
        client = connect(_ADVICE)
        with store_errors_as_user_errors(_ADVICE), tempfile.TemporaryDirectory() as temporary:
            return registry.reference(client, *self.registered, Path(temporary))


def open_model(model: str, folder: Path | None) -> Served:
    """Find and load a model. Raises UserError where there is no such thing."""
    with located(model, folder) as model_files:
        return load(model_files)


def load(located: LocatedModel) -> Served:
    """Load the checkpoint that was found. Raises UserError where it is none."""
    from qamoe.degradation.views import references_from_stats
    from qamoe.models import checkpoint

    device = settings.device()
    trained = checkpoint.load(located.folder, device)
    digest = checkpoint.digest(located.folder)
    return Served(
        trained, references_from_stats(trained.config["stats"]), device, located.name, digest, located.registered
    )


@contextmanager
def located(model: str, folder: Path | None) -> Iterator[LocatedModel]:
    """Where a model is, as long as the block lasts.

    `folder` wins over `model`, which is models:/NAME@ALIAS or models:/NAME/VERSION. Raises UserError where the registry
    has no such thing.
    """
    if folder is not None:
        yield LocatedModel(folder, "/".join(folder.resolve().parts[-2:]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield _registered(model, Path(temporary))


def _registered(model: str, temporary: Path) -> LocatedModel:
    from qamoe.registry import local_lookup

    parts = _REGISTERED.fullmatch(model)
    if parts is None:
        raise UserError(f"--model {model!r} is none of models:/NAME@ALIAS and models:/NAME/VERSION.")
    name, version, alias = parts["name"], parts["version"], parts["alias"]
    version, folder = local_lookup.version_and_folder(name, version, alias) or _fetched(name, version, alias, temporary)
    label = f"{name} version {version}"
    return LocatedModel(folder, f"{label} ({alias})" if alias else label, (name, version))


def _fetched(name: str, version: str | None, alias: str, temporary: Path) -> tuple[str, Path]:
    from qamoe.registry import registry
    from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors

    client = connect(_ADVICE)
    with store_errors_as_user_errors(_ADVICE):
        if version is None:
            version = str(client.get_model_version_by_alias(name, alias).version)
        return version, registry.fetch(name, version, temporary)
