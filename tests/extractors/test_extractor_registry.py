"""The registry: params.yaml chooses extractors by name, each has its own settings, and errors name the key."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qamoe.config.extractor_settings import extractor_settings
from qamoe.config.params import Extract
from qamoe.extractors.registry import EXTRACTORS, extractor

BLOCKS: dict[str, dict[str, Any]] = {
    "minilm": {"max_tokens": 50},
    "egemaps": {"rate": 20.0},
    "logmel": {"rate": 20.0, "bands": 24},
    "landmarks": {"rate": 5.0},
    "openface": {"rate": 5.0},
}
NAMES = [(modality, name) for modality, by_name in EXTRACTORS.items() for name in by_name if name in BLOCKS]


def test_a_name_belongs_to_one_modality() -> None:
    names = [name for by_name in EXTRACTORS.values() for name in by_name]
    assert len(set(names)) == len(names)
    assert all(kind.name == name for by_name in EXTRACTORS.values() for name, kind in by_name.items())


@pytest.mark.parametrize(("modality", "name"), NAMES)
def test_an_extractor_has_name_version_rate_and_columns(modality: str, name: str) -> None:
    chosen = extractor_settings(modality, {"extractor": name, **BLOCKS[name]})
    made_by = extractor(chosen)
    assert (made_by.name, made_by.version.isdigit()) == (name, True)
    assert extractor(extractor_settings(modality, chosen.model_dump())) is made_by, "it is created once"
    if modality != "text":
        assert made_by.rate == BLOCKS[name]["rate"]
        assert len(set(made_by.columns)) == len(made_by.columns) > 0
        assert made_by.reads(Path("folder/clip.mp4")).parent == Path("folder")


def blocks(**changed: Any) -> dict[str, Any]:
    return {
        "corpus": {"kind": "clips", "path": "data"},
        "task": {"kind": "regression", "low": -3, "high": 3},
        "text": {"extractor": "minilm", "max_tokens": 50},
        "audio": {"extractor": "egemaps", "rate": 20},
        "vision": {"extractor": "landmarks", "rate": 5},
        "max_problem_share": 0.05,
        "seconds_per_clip": 60,
        **changed,
    }


def test_settings_survive_a_round_trip() -> None:
    params = Extract.model_validate(blocks())
    assert params.audio.rate == 20
    assert params.model_dump(mode="json")["audio"] == {"extractor": "egemaps", "rate": 20.0}
    assert Extract.model_validate(params.model_dump()) == params


@pytest.mark.parametrize(
    ("modality", "value", "key", "named"),
    [
        ("audio", {"extractor": "landmarks", "rate": 5}, ("audio",), r"'landmarks'.*egemaps, logmel, wav2vec"),
        ("audio", {"rate": 5}, ("audio",), r"None.*egemaps, logmel, wav2vec"),
        ("text", "minilm", ("text",), r"None.*minilm"),
        ("audio", {"extractor": "egemaps", "rate": 101}, ("audio", "rate"), "less than or equal to 100"),
        ("audio", {"extractor": "egemaps"}, ("audio", "rate"), "required"),
        ("audio", {"extractor": "egemaps", "rate": 20, "bands": 40}, ("audio", "bands"), "not permitted"),
        ("audio", {"extractor": "wav2vec", "rate": 20}, ("audio", "model"), "required"),
        ("vision", {"extractor": "landmarks", "rate": 5, "bands": 4}, ("vision", "bands"), "not permitted"),
    ],
)
def test_an_error_names_the_key_and_the_value(modality: str, value: Any, key: tuple[str, ...], named: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Extract.model_validate(blocks(**{modality: value}))
    (error,) = raised.value.errors()
    assert error["loc"] == key
    assert re.search(named, error["msg"])
