"""Register a candidate as challenger, apply the promotion gate, and move the champion alias.

registry/gate.py defines the rules. Each decision is recorded with its reasons: as tags and description of the model
version, and as promote/<key>.json and .html in the run of the candidate, where <key> is the gate_key.

A kill may happen between any two steps. The record says `promoting` until the aliases have moved. `finish` completes
an interrupted promotion or rollback; each promotion and rollback calls it first.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

from qamoe.config import params as parameters
from qamoe.config.params import Registry
from qamoe.errors import UserError
from qamoe.registry.gate import GateMeasurements, Verdict, predicts_the_same, rules
from qamoe.tracking.mlflow_store import exclusive_lock, reason, run_of, store_errors_as_user_errors
from qamoe.tracking.runs import ARTIFACT, MODEL_ID

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
REFERENCE = "reference.parquet"
ROLLED_BACK = "qamoe.rolled_back"  # tag of a version: when it was rolled back
TIME = "%Y-%m-%dT%H:%M:%SZ"  # of a rollback, in UTC
_COPIED = (ARTIFACT, MODEL_ID, "qamoe.model", "qamoe.seed")  # tags of a run that its version gets
_GATE = "qamoe.gate."  # prefix of a tag of a version: the decision for one gate_key
_PROMOTING = "qamoe.promoting"  # tag of a version that passed: its gate_key, until all aliases have moved


@dataclass(frozen=True)
class Champion:
    """A registered version, the digest of its checkpoint, and the MLflow run that it came from."""

    version: str
    digest: str
    run: str | None = None


@dataclass(frozen=True)
class Decision:
    """The outcome for a version and its reasons.

    outcome: promoted, refused, unchanged, or overtaken (another version became champion in the meantime).
    """

    outcome: str
    version: str | None
    reasons: tuple[str, ...]
    verdicts: tuple[Verdict, ...] = ()
    run: str | None = None  # the MLflow run that the version came from


@dataclass(frozen=True)
class GateData:
    """The data behind a decision: version of the protocol, digests of the data and of the gate split."""

    protocol: int
    data_digest: str
    gate_digest: str


class CandidateRecord(TypedDict):
    digest: str
    model: str
    seed: int
    selection: float
    run: str


class ChampionRecord(TypedDict):
    version: str
    digest: str
    run: str | None


class RuleRecord(TypedDict):
    rule: str
    passed: bool
    numbers: dict[str, float]
    sentence: str


class DecisionRecord(TypedDict):
    """promote/<key>.json in the run of a candidate; at: time in UTC; clips, sources: their numbers in the split."""

    decision: str
    at: str
    name: str
    version: str
    candidate: CandidateRecord
    champion: ChampionRecord | None
    split: str
    clips: int
    sources: int
    protocol: int
    data_digest: str
    gate_digest: str
    rules: list[RuleRecord]


def champion(client: Any, name: str) -> Champion | None:
    """Return the version behind models:/name@champion, or None.

    A person may have registered and aliased it. Raises UserError if it came from no training run.
    """
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # unknown model; unknown alias
            return None
        raise
    return Champion(str(version.version), _origin(client, version)[ARTIFACT], version.run_id)


def _origin(client: Any, version: Any) -> dict[str, str]:
    """Return the tags that name the checkpoint of a version: its own, or those of the run that it came from.

    A version that a person registered has none of its own. Its files are compared with the digest when they are read.
    """
    if ARTIFACT in version.tags:
        return {tag: value for tag, value in version.tags.items() if tag in _COPIED}
    run = run_of(client, version.run_id)
    tags = {} if run is None else run.data.tags
    if not all(tag in tags for tag in _COPIED):
        raise UserError(
            f"version {version.version} of {version.name} was registered by hand and comes from no training run of "
            "qamoe; take its alias away, and submit a recorded training with `qamoe promote --run RUN`"
        )
    return {tag: tags[tag] for tag in _COPIED}


def version_digest(client: Any, name: str, version: str) -> str:
    """Return the digest of a version's checkpoint. Raises UserError if there is no such version, or no run made it."""
    from mlflow.exceptions import MlflowException

    try:
        return _origin(client, client.get_model_version(name, version))[ARTIFACT]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"{name} has no version {version}; `qamoe versions` lists those it has") from None


def adopt(client: Any, name: str, version: str) -> None:
    """Tag a version that a person registered with the checkpoint of the run that it came from."""
    registered = client.get_model_version(name, version)
    for tag, value in _origin(client, registered).items():
        if registered.tags.get(tag) != value:
            client.set_model_version_tag(name, version, tag, value)


def fetch_run(client: Any, run_id: str, folder: Path) -> Path:
    """Download the checkpoint that a training run recorded; return the folder of its files.

    Raises UserError if there is no such run, it recorded no checkpoint, or the files have another digest.
    """
    run = run_of(client, run_id)
    if run is None:
        raise UserError(f"there is no run {run_id!r}; `make ui` shows the runs and their ids")
    tags = run.data.tags
    if not all(tag in tags for tag in _COPIED):
        raise UserError(f"run {run_id} recorded no checkpoint; it must be a finished training run")
    files = _download(f"models:/{tags[MODEL_ID]}", folder, f"run {run_id}") / "artifacts"
    _check_digest(files, tags[ARTIFACT], f"run {run_id}")
    return files


def fetch(name: str, version: str, folder: Path, digest: str | None = None) -> Path:
    """Download the checkpoint of a registered version; return the folder of its files.

    A version may have a loader of its own, which runs code: only its weights and its model.json are read, by
    models/checkpoint.py, and MLflow never loads it. Raises UserError if they cannot be downloaded, or do not have the
    digest that is given.
    """
    named = f"version {version} of {name}"
    files = _download(f"models:/{name}/{version}/artifacts", folder, named)
    if digest is not None:
        _check_digest(files, digest, named)
    return files


def _download(address: str, folder: Path, named: str) -> Path:
    import mlflow

    with store_errors_as_user_errors(f"; the checkpoint of {named} was not downloaded"):
        return Path(mlflow.artifacts.download_artifacts(address, dst_path=str(folder)))


def _check_digest(files: Path, digest: str, named: str) -> None:
    from qamoe.models import checkpoint

    if not all((files / part).is_file() for part in (checkpoint.WEIGHTS, checkpoint.CONFIG)):
        raise UserError(f"{named} has no checkpoint; promote did not register it")
    if (found := checkpoint.digest(files)) != digest:
        raise UserError(
            f"{named} holds a checkpoint of digest {found[:12]}, but its tag {ARTIFACT} is "
            f"{digest[:12]}; promote did not register it"
        )


def same_corpus(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str, version: str) -> None:
    """Raise UserError if candidate (`ours`) and champion (`theirs`) differ in corpus, task or features."""
    compared = [
        (key, _get(theirs, key), _get(ours, key))
        for key in ("stats.about", "task", "inputs", "extract.text", "extract.audio", "extract.vision")
    ]
    different = [
        f"{key} is {champion}, not {candidate}" for key, champion, candidate in compared if champion != candidate
    ]
    if different:
        raise UserError(
            f"the champion of {name} (version {version}) was trained on another corpus ({'; '.join(different)}); "
            "set a different registry.name in params.yaml for each corpus"
        )


def _get(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def gate_key(split_digest: str, protocol: int, registry: Registry, against: Champion | None) -> str:
    """Return a key of everything except the candidate that a decision depends on.

    That is the champion, the clips, the protocol and the parameters of the promotion gate.
    """
    return parameters.digest(split_digest, protocol, registry, against.digest if against else None)[:16]


def existing_decision(client: Any, name: str, digest: str, key: str, against: Champion | None) -> Decision | None:
    """Return a decision that already exists, or None.

    It exists if the candidate is the champion, was rolled back, or was refused under the same gate_key.
    """
    if against is not None and digest == against.digest:
        reason = f"this checkpoint is the champion (version {against.version})"
        return Decision("unchanged", against.version, (reason,), run=against.run)
    version = _version_of(client, name, digest)
    if version is not None and ROLLED_BACK in version.tags:
        reason = f"version {version.version} was rolled back at {version.tags[ROLLED_BACK]}; `qamoe rollback` undoes it"
        return Decision("unchanged", str(version.version), (reason,), run=version.run_id)
    if version is not None and version.tags.get(_GATE + key) == "refused":
        reason = f"version {version.version} was refused before against the same champion, clips and protocol"
        return Decision(
            "unchanged", str(version.version), (reason, *_recorded_reasons(version.tags)), run=version.run_id
        )
    return None


def _recorded_reasons(tags: dict[str, str]) -> list[str]:
    return [value for tag, value in sorted(tags.items()) if tag.startswith("qamoe.rule.")]


def _version_of(client: Any, name: str, digest: str) -> Any | None:
    versions = client.search_model_versions(f"name = '{name}'")
    same = [version for version in versions if version.tags.get(ARTIFACT) == digest]
    return max(same, key=lambda version: int(version.version)) if same else None


def keep_reference(client: Any, run_id: str, reference: pd.DataFrame) -> None:
    """Store the description of a candidate's clips in its training run, for the comparison in registry/drift.py."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        reference.to_parquet(Path(folder) / REFERENCE, index=False)
        client.log_artifact(run_id, str(Path(folder) / REFERENCE), "promote")


def reference(client: Any, name: str, version: str, folder: Path) -> pd.DataFrame | None:
    """Return the reference that `keep_reference` stored; None for a version without one."""
    from mlflow.exceptions import MlflowException

    run = client.get_model_version(name, version).run_id
    try:
        path = client.download_artifacts(run, f"promote/{REFERENCE}", str(folder)) if run else None
    except (MlflowException, OSError):
        path = None
    return None if path is None else pd.read_parquet(path)


def submit(
    client: Any,
    name: str,
    run_id: str,
    measurements: GateMeasurements,
    key: str,
    against: Champion | None,
    data: GateData,
) -> Decision:
    """Register the checkpoint of a run as challenger, apply every rule, record the decision, and move the aliases.

    data: stored in the record. After an interruption, `finish` and a second call complete the promotion: a version is
    registered once, and champion moves before previous. If another version became champion since `against` was
    measured, no alias moves and the outcome is `overtaken`.
    """
    import tempfile

    from qamoe.inference import predict
    from qamoe.models import checkpoint

    run = client.get_run(run_id)
    version = _register(client, name, run)
    with exclusive_lock():  # MLflow checks for the alias before adding it, so two processes could both add it
        client.set_registered_model_alias(name, CHALLENGER, version)

    with tempfile.TemporaryDirectory() as folder:
        files = fetch(name, version, Path(folder))  # a failed download is an error, and no reason to refuse the model

        def registered(clips: pd.DataFrame) -> pd.DataFrame:
            _check_digest(files, run.data.tags[ARTIFACT], f"version {version} of {name}")
            return predict.predict(checkpoint.load(files), clips)

        verdicts = tuple(rule(measurements, registered) for rule in rules(measurements))
    decision = _decision(verdicts, version, run_id)
    record = _record(name, version, run, measurements, against, data, decision)
    if decision.outcome == "refused":
        _write(client, record, key)
        return decision
    with exclusive_lock():
        if champion(client, name) != against:
            return replace(decision, outcome="overtaken")
        _write(client, {**record, "decision": "promoting"}, key)
        client.set_model_version_tag(name, version, _PROMOTING, key)
        client.set_registered_model_alias(name, CHAMPION, version)
        _complete(client, record, key)
    return decision


def finish(client: Any, name: str) -> str | None:
    """Complete an interrupted promotion or rollback.

    Returns the version that a completed rollback replaced, or None if no rollback was interrupted. Raises UserError if
    the record of an interrupted promotion cannot be read.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases = {alias: str(of) for alias, of in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    current = aliases.get(CHAMPION)
    version = None if current is None else client.get_model_version(name, current)
    mark_champion(client, name, None if version is None else version.run_id)
    if version is None:
        return None
    if _PROMOTING in version.tags:
        key = version.tags[_PROMOTING]
        _complete(client, {**_read(client, version, key), "decision": "promoted"}, key)
        return None
    replaced = None
    if aliases.get(PREVIOUS) == current:  # only the first of the two aliases of a rollback has moved
        others = [v for v in client.search_model_versions(f"name = '{name}'") if str(v.version) != current]
        rolled_back = [(at, int(v.version)) for v in others if (at := rolled_back_at(v))]
        if rolled_back:
            replaced = str(max(rolled_back)[1])
            client.set_registered_model_alias(name, PREVIOUS, replaced)
    if ROLLED_BACK in version.tags:
        client.delete_model_version_tag(name, current, ROLLED_BACK)
    return replaced


def rolled_back_at(version: Any) -> datetime | None:
    """Return when a version was rolled back; None if it was not, or if a person wrote the tag in another form."""
    try:
        return datetime.strptime(version.tags[ROLLED_BACK], TIME).replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return None


def mark_champion(client: Any, name: str, run_id: str | None) -> None:
    """Give the run of the champion, and no other, the tag `champion` with the name of the registered model.

    A deleted run takes no tags: a champion needs its run no longer.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    marked = {run.info.run_id for run in client.search_runs(experiments, f"tags.`{CHAMPION}` = '{name}'")}
    for former in marked - {run_id}:
        client.delete_tag(former, CHAMPION)
    run = None if run_id in marked else run_of(client, run_id)
    if run is not None and run.info.lifecycle_stage == "active":
        client.set_tag(run_id, CHAMPION, name)


def _complete(client: Any, record: DecisionRecord, key: str) -> None:
    """Complete a promotion after champion has moved: move the other aliases, and write the final record last."""
    name, version, previous = record["name"], record["version"], record["champion"]
    if previous:
        client.set_registered_model_alias(name, PREVIOUS, previous["version"])
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    mark_champion(client, name, record["candidate"]["run"])
    _write(client, record, key)
    client.delete_model_version_tag(name, version, _PROMOTING)


def dry_run(measurements: GateMeasurements) -> Decision:
    """Apply the rules to a candidate that is not registered, except the rule that needs the registered model."""

    def not_registered(clips: pd.DataFrame) -> pd.DataFrame:
        raise UserError("a dry run registers no model")

    without_model = [rule for rule in rules(measurements) if rule is not predicts_the_same]
    return _decision(tuple(rule(measurements, not_registered) for rule in without_model), None, None)


def _decision(verdicts: tuple[Verdict, ...], version: str | None, run_id: str | None) -> Decision:
    reasons = tuple(_reason(_rule_record(verdict)) for verdict in verdicts)
    outcome = "promoted" if all(verdict.passed for verdict in verdicts) else "refused"
    return Decision(outcome, version, reasons, verdicts, run_id)


def _register(client: Any, name: str, run: Any) -> str:
    from mlflow.exceptions import MlflowException

    digest = run.data.tags[ARTIFACT]
    # The id of the logged model is unique; a run may hold models of several steps.
    source = f"models:/{run.data.tags[MODEL_ID]}"
    existing = _version_of(client, name, digest)
    if existing is not None and existing.source == source:  # not one that has the tag and other files
        return str(existing.version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {tag: run.data.tags[tag] for tag in _COPIED}
    created = client.create_model_version(name, source, run.info.run_id, tags, model_id=run.data.tags[MODEL_ID])
    return str(created.version)


def _record(
    name: str,
    version: str,
    run: Any,
    measurements: GateMeasurements,
    against: Champion | None,
    data: GateData,
    decision: Decision,
) -> DecisionRecord:
    rows = measurements.candidate
    return {
        "decision": decision.outcome,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "name": name,
        "version": version,
        "candidate": {
            "digest": run.data.tags[ARTIFACT],
            "model": measurements.config["model"],
            "seed": measurements.config["seed"],
            "selection": measurements.config["selection"],
            "run": run.info.run_id,
        },
        "champion": {"version": against.version, "digest": against.digest, "run": against.run} if against else None,
        "split": measurements.split,
        "clips": rows["clip_id"].nunique(),
        "sources": rows["source"].nunique(),
        "protocol": data.protocol,
        "data_digest": data.data_digest,
        "gate_digest": data.gate_digest,
        "rules": [_rule_record(verdict) for verdict in decision.verdicts],
    }


def _rule_record(verdict: Verdict) -> RuleRecord:
    return {
        "rule": verdict.rule,
        "passed": verdict.passed,
        "numbers": verdict.numbers,
        "sentence": verdict.sentence,
    }


def _write(client: Any, record: DecisionRecord, key: str) -> None:
    """Record a decision, or replace its earlier record."""
    run, name, version = record["candidate"]["run"], record["name"], record["version"]
    page, against = markdown(record), record["champion"]
    client.log_text(run, json.dumps(record, indent=1, default=float), f"promote/{key}.json")
    client.log_text(run, html(record), f"promote/{key}.html")
    client.update_model_version(name, version, description=page)
    tags = {f"qamoe.rule.{rule['rule']}": _reason(rule) for rule in record["rules"]}
    tags |= {"qamoe.protocol": str(record["protocol"]), "qamoe.data_digest": record["data_digest"]}
    tags |= {"qamoe.gate_digest": record["gate_digest"], "qamoe.split": record["split"]}
    tags["qamoe.champion_digest"] = against["digest"] if against else "none"
    tags |= {"qamoe.decision": record["decision"], _GATE + key: record["decision"]}  # last: existing_decision reads it
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, value)


def _read(client: Any, version: Any, key: str) -> DecisionRecord:
    """Read the record that `_write` wrote in the run of a version."""
    import tempfile

    from mlflow.exceptions import MlflowException

    try:
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(
                Path(client.download_artifacts(version.run_id, f"promote/{key}.json", folder)).read_text()
            )
    except (MlflowException, OSError, ValueError) as error:
        raise UserError(
            f"version {version.version} of {version.name} has the tag {_PROMOTING} of an interrupted promotion, but "
            f"promote/{key}.json in its run {version.run_id} cannot be read ({reason(error)}); delete that tag if the "
            "record is lost"
        ) from None


def _reason(rule: RuleRecord) -> str:
    return f"{'passed' if rule['passed'] else 'failed'} {rule['rule']}: {rule['sentence']}"


def html(record: DecisionRecord) -> str:
    """Return a decision as a page, which MLflow shows among the files of a run."""
    from jinja2 import Environment

    template = Path(__file__).with_name("decision.html").read_text()
    return Environment(autoescape=True).from_string(template).render(record)


def markdown(record: DecisionRecord) -> str:
    """Return a decision as Markdown: the outcome, candidate and champion, and one line per rule."""
    theirs = record["champion"]
    data = f"{record['clips']} clips of {record['sources']} sources of split {record['split']}"
    lines = [
        f"**{record['name']}, version {record['version']}: {record['decision']}** ({record['at']})",
        f"{record['candidate']['model']}, seed {record['candidate']['seed']}, against "
        + (f"the champion, version {theirs['version']}" if theirs else "no champion")
        + f", on {data}.",
    ]
    if record["split"] != "gate":
        lines.append(
            f"This corpus has no gate split. Split {record['split']}, which selected the checkpoint, was used."
        )
    rules = [f"- {'passed' if r['passed'] else 'FAILED'} `{r['rule']}`: {r['sentence']}" for r in record["rules"]]
    return "\n\n".join([*lines, "\n".join(rules)]) + "\n"
