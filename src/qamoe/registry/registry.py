"""The registered model: a candidate becomes challenger, passes the gate or not, and becomes champion or not.

The gate's rules are in registry/gate.py. Every decision is kept with its reasons: as tags and description of the model
version, and as promote/<gate>.json and .md in the run of the candidate.

A kill may come between any two steps. The record says `promoting` until the aliases have moved, and `finish` ends what
was begun: each promotion and rollback calls it first.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from qamoe.config import params as parameters
from qamoe.config.params import Registry
from qamoe.errors import UserError
from qamoe.registry.gate import Evidence, Verdict, predicts_the_same, rules
from qamoe.tracking.mlflow_store import exclusive_lock
from qamoe.tracking.runs import ARTIFACT, MODEL_ID

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
REFERENCE = "reference.parquet"
ROLLED_BACK = "qamoe.rolled_back"  # tag of a version: when it stopped to be champion by hand
_GATE = "qamoe.gate."  # tag of a version: what was decided about it at one gate
_PROMOTING = "qamoe.promoting"  # tag of a version: the gate that let it pass, until all aliases have moved
_ABOUT = ("protocol", "data_digest", "gate_digest")


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
    found = [
        (what, _get(theirs, what), _get(ours, what))
        for what in ("stats.about", "task", "inputs", "extract.text", "extract.audio", "extract.vision")
    ]
    different = [f"{what} {a} instead of {b}" for what, a, b in found if a != b]
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
        return Decision("unchanged", str(version.version), (before, *_told(version.tags)), run=version.run_id)
    return None


def _told(tags: dict[str, str]) -> list[str]:
    return [value for tag, value in sorted(tags.items()) if tag.startswith("qamoe.rule.")]


def _version_of(client: Any, name: str, digest: str) -> Any | None:
    found = client.search_model_versions(f"name = '{name}'")
    same = [version for version in found if version.tags.get(ARTIFACT) == digest]
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
    client: Any, name: str, run_id: str, evidence: Evidence, key: str, against: Champion | None, about: dict[str, Any]
) -> Decision:
    """Register the checkpoint of a run, alias it challenger, ask every rule, record the answer, and move the aliases.

    `about` has the keys of _ABOUT and goes into the record. Whatever stops this half-way, `finish` and calling it
    again bring it to its end: a version is registered once, and champion moves before previous. Where another has
    become champion since `against` was measured, nothing moves and the outcome is `overtaken`.
    """
    import mlflow

    run = client.get_run(run_id)
    version = _register(client, name, run)
    client.set_registered_model_alias(name, CHALLENGER, version)

    def registered(clips: pd.DataFrame) -> pd.DataFrame:
        return mlflow.pyfunc.load_model(f"models:/{name}/{version}").predict(clips)

    verdicts = tuple(rule(evidence, registered) for rule in rules(evidence))
    decision = _decided(verdicts, version, run_id)
    content = _content(name, run, evidence, against, about, decision)
    if decision.outcome == "refused":
        _write(client, content, key)
        return decision
    with exclusive_lock():
        if champion(client, name) != against:
            return replace(decision, outcome="overtaken")
        _write(client, content | {"decision": "promoting"}, key)
        client.set_model_version_tag(name, version, _PROMOTING, key)
        client.set_registered_model_alias(name, CHAMPION, version)
        _complete(client, content, key)
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
        _complete(client, _read(client, version.run_id, key) | {"decision": "promoted"}, key)
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


def _complete(client: Any, content: dict[str, Any], key: str) -> None:
    """What is left to do once champion has moved: the other aliases, and last the record that says so."""
    name, version, before = content["name"], content["version"], content["champion"]
    if before:
        client.set_registered_model_alias(name, PREVIOUS, before["version"])
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    _write(client, content, key)
    client.delete_model_version_tag(name, version, _PROMOTING)


def foretold(evidence: Evidence) -> Decision:
    """What the rules say of a candidate that is registered nowhere: all but the one that asks the registered model."""

    def nobody(clips: pd.DataFrame) -> pd.DataFrame:
        raise UserError("Nothing is registered in a dry run.")

    asked = [rule for rule in rules(evidence) if rule is not predicts_the_same]
    return _decided(tuple(rule(evidence, nobody) for rule in asked), None, None)


def _decided(verdicts: tuple[Verdict, ...], version: str | None, run_id: str | None) -> Decision:
    reasons = tuple(_reason(asdict(verdict)) for verdict in verdicts)
    outcome = "promoted" if all(verdict.passed for verdict in verdicts) else "refused"
    return Decision(outcome, version, reasons, verdicts, run_id)


def _register(client: Any, name: str, run: Any) -> str:
    from mlflow.exceptions import MlflowException

    digest = run.data.tags[ARTIFACT]
    there = _version_of(client, name, digest)
    if there is not None:
        return str(there.version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {tag: run.data.tags[tag] for tag in (ARTIFACT, MODEL_ID, "qamoe.model", "qamoe.seed")}
    # By the logged model's id: a run's name could mean another step of it.
    source = f"models:/{run.data.tags[MODEL_ID]}"
    made = client.create_model_version(name, source, run.info.run_id, tags, model_id=run.data.tags[MODEL_ID])
    return str(made.version)


def _content(
    name: str, run: Any, evidence: Evidence, against: Champion | None, about: dict[str, Any], decision: Decision
) -> dict[str, Any]:
    """A decision as promote/<gate>.json holds it."""
    rows = evidence.candidate
    return {
        "decision": decision.outcome,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "name": name,
        "version": decision.version,
        "candidate": {
            "digest": run.data.tags[ARTIFACT],
            "model": evidence.config["model"],
            "seed": evidence.config["seed"],
            "selection": evidence.config["selection"],
            "run": run.info.run_id,
        },
        "champion": asdict(against) if against else None,
        "split": evidence.split,
        "clips": rows["clip_id"].nunique(),
        "sources": rows["source"].nunique(),
        **about,
        "rules": [asdict(verdict) for verdict in decision.verdicts],
    }


def _write(client: Any, content: dict[str, Any], key: str) -> None:
    """Record a decision, or anew what has become of it."""
    run, name, version = content["candidate"]["run"], content["name"], content["version"]
    told, against = markdown(content), content["champion"]
    client.log_text(run, json.dumps(content, indent=1, default=float), f"promote/{key}.json")
    client.log_text(run, told, f"promote/{key}.md")
    client.update_model_version(name, version, description=told)
    tags = {f"qamoe.rule.{rule['rule']}": _reason(rule) for rule in content["rules"]}
    tags |= {f"qamoe.{what}": str(content[what]) for what in _ABOUT}
    tags |= {"qamoe.split": content["split"], "qamoe.champion_digest": against["digest"] if against else "none"}
    tags |= {"qamoe.decision": content["decision"], _GATE + key: content["decision"]}  # last: what makes it settled
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, value)


def _read(client: Any, run: str, key: str) -> dict[str, Any]:
    """What `_write` wrote."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return json.loads(Path(client.download_artifacts(run, f"promote/{key}.json", folder)).read_text())


def _reason(rule: dict[str, Any]) -> str:
    return f"{'passed' if rule['passed'] else 'failed'} {rule['rule']}: {rule['sentence']}"


def markdown(content: dict[str, Any]) -> str:
    """A decision as a page: the outcome, what stood against what, and a line a rule."""
    theirs = content["champion"]
    seen = f"{content['clips']} clips of {content['sources']} sources of split {content['split']}"
    lines = [
        f"**{content['name']}, version {content['version']}: {content['decision']}** ({content['at']})",
        f"{content['candidate']['model']}, seed {content['candidate']['seed']}, against "
        + (f"the champion, version {theirs['version']}" if theirs else "no champion")
        + f", on {seen}.",
    ]
    if content["split"] != "gate":
        lines.append("This corpus has no gate split, so the split that chose the checkpoint judged it too.")
    rules = [f"- {'passed' if r['passed'] else 'FAILED'} `{r['rule']}`: {r['sentence']}" for r in content["rules"]]
    return "\n\n".join([*lines, "\n".join(rules)]) + "\n"
