"""Locate and load a model from a training folder or a version of the registry.

Locating and loading are separate steps: loading takes seconds, during which the extractors can start.
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
from qamoe.config.extractor_settings import ExtractorSettings
from qamoe.data.stats import text_is_vectors
from qamoe.errors import UserError
from qamoe.extractors.registry import extractors_of

if TYPE_CHECKING:
    import pandas as pd

    from qamoe.degradation.features import Reference
    from qamoe.models.checkpoint import Trained

_SEED = 2026  # of the degradations on the page; each clip has its own draws
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_ADVICE = "; on the command line, --folder artifacts/train/qamoe/1 takes a trained checkpoint without the registry"


@dataclass(frozen=True)
class LocatedModel:
    """The folder of a checkpoint, a name to show to users, and name and version if it is registered."""

    folder: Path
    name: str
    registered: tuple[str, str] | None = None


@dataclass(frozen=True)
class Served:
    """A loaded model. name, registered: as in LocatedModel. digest: that of the checkpoint."""

    trained: "Trained"
    references: dict[str, "Reference"]
    device: str
    name: str
    digest: str
    registered: tuple[str, str] | None = None

    def predict(self, rows: "pd.DataFrame", degradations: dict[str, tuple[str, float]] | None = None) -> "pd.DataFrame":
        """Predict rows with qamoe.inference.predict. degradations: modality -> kind and severity, applied first."""
        from qamoe.degradation.views import View, apply
        from qamoe.inference import predict

        if not degradations:
            return predict.predict(self.trained, rows, self.device)
        pairs = [degradations.get(m, ("clean", 0.0)) for m in predict.MODALITIES]
        view = View(_SEED, 0, kinds=tuple(k for k, _ in pairs), severities=tuple(s for _, s in pairs))
        return predict.predict(self.trained, rows, self.device, lambda batch: apply(batch, view, self.references)[0])

    def warm_up(self) -> None:
        """Predict once to load the text encoder before the first request.

        Raises UserError for a model with a weight or an answer that is not a finite number.
        """
        import numpy as np
        import pandas as pd

        for name, weights in self.trained.model.state_dict().items():
            if not bool(weights.isfinite().all()):
                raise UserError(f"{self.name}: the weights {name} hold a value that is not finite.")
        words = None if text_is_vectors(self.trained.config["stats"]) else "ready"
        answers = self.predict(pd.DataFrame({"text": pd.Series([words], dtype=object)}))
        numbers = answers["variance"] if "variance" in answers else answers.filter(regex="^(p|has)_")
        if not np.isfinite(numbers.to_numpy(float)).all():
            raise UserError(f"{self.name}: its answer is not a finite number.")

    @cached_property
    def extractors(self) -> dict[str, ExtractorSettings]:
        return extractors_of(self.trained.config)

    def reference(self) -> "pd.DataFrame | None":
        """Return the drift reference of a registered version, or None if it has none."""
        from qamoe.registry import registry
        from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors

        if self.registered is None:
            return None
        client = connect(_ADVICE)
        with store_errors_as_user_errors(_ADVICE), tempfile.TemporaryDirectory() as temporary:
            return registry.reference(client, *self.registered, Path(temporary))


def open_model(model: str, folder: Path | None) -> Served:
    """Locate and load a model. Raises UserError if it does not exist."""
    with located(model, folder) as model_files:
        return load(model_files)


def load(located: LocatedModel) -> Served:
    """Load a located checkpoint. Raises UserError if the folder does not hold one."""
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
    """Locate a model; its files exist within the with block.

    folder: a training folder, used instead of `model` if given. model: models:/NAME@ALIAS or models:/NAME/VERSION.
    Raises UserError if the registry does not have it.
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
        raise UserError(f"--model {model!r} is not valid; allowed: models:/NAME@ALIAS and models:/NAME/VERSION")
    name, version, alias = parts["name"], parts["version"], parts["alias"]
    version, folder = local_lookup.version_and_folder(name, version, alias) or _fetched(name, version, alias, temporary)
    label = f"{name} version {version}"
    return LocatedModel(folder, f"{label} ({alias})" if alias else label, (name, version))


def _fetched(name: str, version: str | None, alias: str | None, temporary: Path) -> tuple[str, Path]:
    from mlflow.exceptions import MlflowException

    from qamoe.registry import local_lookup, registry
    from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors

    client = connect(_ADVICE)
    with store_errors_as_user_errors(_ADVICE):
        try:
            found = (
                client.get_model_version_by_alias(name, alias)
                if version is None
                else client.get_model_version(name, version)
            )
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            registered = [str(known.version) for known in client.search_model_versions(f"name = '{name}'")]
            raise local_lookup.not_registered(name, version, alias, registered) from None
        return str(found.version), registry.fetch(name, str(found.version), temporary)
