"""The registered model: a candidate becomes challenger, passes the gate or not, and becomes champion or not.

The gate's rules are in registry/gate.py. Every decision is kept with its reasons: as tags and description of the model
version, and as promote/<gate>.json and .md in the run of the candidate.

A kill may come between any two steps. The record says `promoting` until the aliases have moved, and `finish` ends what
was begun: each promotion and rollback calls it first.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

from qamoe.config import params as parameters
from qamoe.config.params import Registry
from qamoe.errors import UserError
from qamoe.registry.gate import Evidence, Verdict, predicts_the_same, rules
from qamoe.tracking.mlflow_store import exclusive_lock
from qamoe.tracking.runs import ARTIFACT, MODEL_ID

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
REFERENCE = "reference.parquet"
ROLLED_BACK = "qamoe.rolled_back"  # tag of a version: when it was rolled back
_GATE = "qamoe.gate."  # tag of a version: what was decided about it at one gate
_PROMOTING = "qamoe.promoting"  # tag of a version: the gate that let it pass, until all aliases have moved


@dataclass(frozen=True)
class Champion:
    """A registered version, the checkpoint in it, and the MLflow run that it came from."""

    version: str
    digest: str
    run: str | None = None


@dataclass(frozen=True)
class Decision:
    """promoted, refused, unchanged or overtaken (another became champion meanwhile), about which version, and why."""

    outcome: str
    version: str | None
    reasons: tuple[str, ...]
    verdicts: tuple[Verdict, ...] = ()
    run: str | None = None  # the MLflow run that the version came from


@dataclass(frozen=True)
class GateData:
    """What a decision was measured on: the protocol's version, digests of the data and of the gate split."""

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
    """promote/<gate>.json in the run of a candidate; `at` is the time in UTC, clips and sources those of the split."""

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
    """Who answers to models:/name@champion now, or None."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
            return None
        raise
    digest = version.tags.get(ARTIFACT)
    if digest is None:
        raise UserError(f"Version {version.version} of {name} has no tag {ARTIFACT}; it was not registered by promote.")
    return Champion(str(version.version), digest, version.run_id)


def fetch(name: str, version: str, folder: Path) -> Path:
    """Download the checkpoint of a registered version; returns the folder of its files."""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/artifacts", dst_path=str(folder)))


def same_corpus(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str, version: str) -> None:
    """Refuse a champion whose model.json tells of another corpus, task or features than the candidate's."""
    compared = [
        (what, _get(theirs, what), _get(ours, what))
        for what in ("stats.about", "task", "inputs", "extract.text", "extract.audio", "extract.vision")
    ]
    different = [f"{what} {a} instead of {b}" for what, a, b in compared if a != b]
    if different:
        raise UserError(
            f"The champion of {name} (version {version}) was trained on another corpus ({'; '.join(different)}); "
            "each corpus has a registry.name of its own."
        )


def _get(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def gate_key(split_digest: str, protocol: int, registry: Registry, against: Champion | None) -> str:
    """All that a decision depends on beside the candidate: champion, clips, protocol and the gate's own parameters."""
    return parameters.digest(split_digest, protocol, registry, against.digest if against else None)[:16]


def settled(client: Any, name: str, digest: str, key: str, against: Champion | None) -> Decision | None:
    """The decision where there is nothing to decide: the candidate is champion, or was refused at the same gate."""
    if against is not None and digest == against.digest:
        already = f"this checkpoint is the champion (version {against.version})"
        return Decision("unchanged", against.version, (already,), run=against.run)
    version = _version_of(client, name, digest)
    if version is not None and ROLLED_BACK in version.tags:
        before = f"version {version.version} was rolled back at {version.tags[ROLLED_BACK]}; `qamoe rollback` undoes it"
        return Decision("unchanged", str(version.version), (before,), run=version.run_id)
    if version is not None and version.tags.get(_GATE + key) == "refused":
        before = f"version {version.version} was refused before against the same champion, clips and protocol"
        return Decision(
            "unchanged", str(version.version), (before, *_recorded_reasons(version.tags)), run=version.run_id
        )
    return None


def _recorded_reasons(tags: dict[str, str]) -> list[str]:
    return [value for tag, value in sorted(tags.items()) if tag.startswith("qamoe.rule.")]


def _version_of(client: Any, name: str, digest: str) -> Any | None:
    versions = client.search_model_versions(f"name = '{name}'")
    same = [version for version in versions if version.tags.get(ARTIFACT) == digest]
    return max(same, key=lambda version: int(version.version)) if same else None


def keep_reference(client: Any, run_id: str, reference: pd.DataFrame) -> None:
    """Keep what a candidate's clips are like in its training run: registry/drift.py compares new ones with it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        reference.to_parquet(Path(folder) / REFERENCE, index=False)
        client.log_artifact(run_id, str(Path(folder) / REFERENCE), "promote")


def reference(client: Any, name: str, version: str, folder: Path) -> pd.DataFrame | None:
    """What `keep_reference` kept of a version; None where nothing was, as of one registered by hand."""
    from mlflow.exceptions import MlflowException

    run = client.get_model_version(name, version).run_id
    try:
        path = client.download_artifacts(run, f"promote/{REFERENCE}", str(folder)) if run else None
    except (MlflowException, OSError):
        path = None
    return None if path is None else pd.read_parquet(path)


def submit(
    client: Any, name: str, run_id: str, evidence: Evidence, key: str, against: Champion | None, data: GateData
) -> Decision:
    """Register the checkpoint of a run, alias it challenger, ask every rule, record the answer, and move the aliases.

    `data` goes into the record. Whatever stops this half-way, `finish` and calling it
    again bring it to its end: a version is registered once, and champion moves before previous. Where another has
    become champion since `against` was measured, nothing moves and the outcome is `overtaken`.
    """
    import mlflow

    run = client.get_run(run_id)
    version = _register(client, name, run)
    with exclusive_lock():  # MLflow looks for the alias and then adds it: two at once both would
        client.set_registered_model_alias(name, CHALLENGER, version)

    def registered(clips: pd.DataFrame) -> pd.DataFrame:
        return mlflow.pyfunc.load_model(f"models:/{name}/{version}").predict(clips)

    verdicts = tuple(rule(evidence, registered) for rule in rules(evidence))
    decision = _decided(verdicts, version, run_id)
    record = _record(name, version, run, evidence, against, data, decision)
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
    """End a promotion or rollback that was killed half-way; returns the version that a rollback left for another, or
    None where no rollback had to be ended."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = {alias: str(of) for alias, of in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    now = aliases.get(CHAMPION)
    if now is None:
        return None
    version = client.get_model_version(name, now)
    if _PROMOTING in version.tags:
        key = version.tags[_PROMOTING]
        _complete(client, {**_read(client, version.run_id, key), "decision": "promoted"}, key)
        return None
    left = None
    if aliases.get(PREVIOUS) == now:  # of a rollback's two aliases one has moved
        rolled = [v for v in client.search_model_versions(f"name = '{name}'") if ROLLED_BACK in v.tags]
        rolled = [v for v in rolled if str(v.version) != now]
        if rolled:
            left = str(max(rolled, key=lambda v: (v.tags[ROLLED_BACK], int(v.version))).version)
            client.set_registered_model_alias(name, PREVIOUS, left)
    if ROLLED_BACK in version.tags:
        client.delete_model_version_tag(name, now, ROLLED_BACK)
    return left


def _complete(client: Any, record: DecisionRecord, key: str) -> None:
    """What is left to do once champion has moved: the other aliases, and last the record that says so."""
    name, version, before = record["name"], record["version"], record["champion"]
    if before:
        client.set_registered_model_alias(name, PREVIOUS, before["version"])
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    _write(client, record, key)
    client.delete_model_version_tag(name, version, _PROMOTING)


def foretold(evidence: Evidence) -> Decision:
    """What the rules say of a candidate that is registered nowhere: all but the one that asks the registered model."""

    def nobody(clips: pd.DataFrame) -> pd.DataFrame:
        raise UserError("Nothing is registered in a dry run.")

    without_model = [rule for rule in rules(evidence) if rule is not predicts_the_same]
    return _decided(tuple(rule(evidence, nobody) for rule in without_model), None, None)


def _decided(verdicts: tuple[Verdict, ...], version: str | None, run_id: str | None) -> Decision:
    reasons = tuple(_reason(_rule_record(verdict)) for verdict in verdicts)
    outcome = "promoted" if all(verdict.passed for verdict in verdicts) else "refused"
    return Decision(outcome, version, reasons, verdicts, run_id)


def _register(client: Any, name: str, run: Any) -> str:
    from mlflow.exceptions import MlflowException

    digest = run.data.tags[ARTIFACT]
    existing = _version_of(client, name, digest)
    if existing is not None:
        return str(existing.version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {tag: run.data.tags[tag] for tag in (ARTIFACT, MODEL_ID, "qamoe.model", "qamoe.seed")}
    # By the logged model's id: a run's name could mean another step of it.
    source = f"models:/{run.data.tags[MODEL_ID]}"
    created = client.create_model_version(name, source, run.info.run_id, tags, model_id=run.data.tags[MODEL_ID])
    return str(created.version)


def _record(
    name: str,
    version: str,
    run: Any,
    evidence: Evidence,
    against: Champion | None,
    data: GateData,
    decision: Decision,
) -> DecisionRecord:
    rows = evidence.candidate
    return {
        "decision": decision.outcome,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "name": name,
        "version": version,
        "candidate": {
            "digest": run.data.tags[ARTIFACT],
            "model": evidence.config["model"],
            "seed": evidence.config["seed"],
            "selection": evidence.config["selection"],
            "run": run.info.run_id,
        },
        "champion": {"version": against.version, "digest": against.digest, "run": against.run} if against else None,
        "split": evidence.split,
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
    """Record a decision, or anew what has become of it."""
    run, name, version = record["candidate"]["run"], record["name"], record["version"]
    page, against = markdown(record), record["champion"]
    client.log_text(run, json.dumps(record, indent=1, default=float), f"promote/{key}.json")
    client.log_text(run, page, f"promote/{key}.md")
    client.update_model_version(name, version, description=page)
    tags = {f"qamoe.rule.{rule['rule']}": _reason(rule) for rule in record["rules"]}
    tags |= {"qamoe.protocol": str(record["protocol"]), "qamoe.data_digest": record["data_digest"]}
    tags |= {"qamoe.gate_digest": record["gate_digest"], "qamoe.split": record["split"]}
    tags["qamoe.champion_digest"] = against["digest"] if against else "none"
    tags |= {"qamoe.decision": record["decision"], _GATE + key: record["decision"]}  # last: what makes it settled
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, value)


def _read(client: Any, run: str, key: str) -> DecisionRecord:
    """What `_write` wrote."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return json.loads(Path(client.download_artifacts(run, f"promote/{key}.json", folder)).read_text())


def _reason(rule: RuleRecord) -> str:
    return f"{'passed' if rule['passed'] else 'failed'} {rule['rule']}: {rule['sentence']}"


def markdown(record: DecisionRecord) -> str:
    """A decision as a page: the outcome, what stood against what, and a line a rule."""
    theirs = record["champion"]
    seen = f"{record['clips']} clips of {record['sources']} sources of split {record['split']}"
    lines = [
        f"**{record['name']}, version {record['version']}: {record['decision']}** ({record['at']})",
        f"{record['candidate']['model']}, seed {record['candidate']['seed']}, against "
        + (f"the champion, version {theirs['version']}" if theirs else "no champion")
        + f", on {seen}.",
    ]
    if record["split"] != "gate":
        lines.append("This corpus has no gate split, so the split that chose the checkpoint judged it too.")
    rules = [f"- {'passed' if r['passed'] else 'FAILED'} `{r['rule']}`: {r['sentence']}" for r in record["rules"]]
    return "\n\n".join([*lines, "\n".join(rules)]) + "\n"
