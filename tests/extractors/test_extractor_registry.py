"""The registry: params.yaml chooses by name, each extractor with settings of its own, and a mistake names them."""

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
ALONE = [(modality, name) for modality, of in EXTRACTORS.items() for name in of if name in BLOCKS]


def test_names_are_of_one_modality_each() -> None:
    names = [name for of in EXTRACTORS.values() for name in of]
    assert len(set(names)) == len(names)
    assert all(made_by.name == name for of in EXTRACTORS.values() for name, made_by in of.items())


@pytest.mark.parametrize(("modality", "name"), ALONE)
def test_a_named_extractor_says_what_it_makes(modality: str, name: str) -> None:
    chosen = extractor_settings(modality, {"extractor": name, **BLOCKS[name]})
    found = extractor(chosen)
    assert (found.name, found.version.isdigit()) == (name, True)
    assert extractor(extractor_settings(modality, chosen.model_dump())) is found, "it is made once"
    if modality != "text":
        assert found.rate == BLOCKS[name]["rate"]
        assert len(set(found.columns)) == len(found.columns) > 0
        assert found.reads(Path("folder/clip.mp4")).parent == Path("folder")


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


def test_the_settings_come_back_as_they_were_given() -> None:
    params = Extract.model_validate(blocks())
    assert params.audio.rate == 20
    assert params.model_dump(mode="json")["audio"] == {"extractor": "egemaps", "rate": 20.0}
    assert Extract.model_validate(params.model_dump()) == params


@pytest.mark.parametrize(
    ("modality", "value", "place", "message"),
    [
        (
            "audio",
            {"extractor": "landmarks", "rate": 5},
            ("audio",),
            "extractor 'landmarks' is none of egemaps, logmel, wav2vec",
        ),
        ("audio", {"rate": 5}, ("audio",), "extractor None is none of egemaps, logmel, wav2vec"),
        ("text", "minilm", ("text",), "extractor None is none of minilm"),
        ("audio", {"extractor": "egemaps", "rate": 101}, ("audio", "rate"), "less than or equal to 100"),
        ("audio", {"extractor": "egemaps"}, ("audio", "rate"), "required"),
        ("audio", {"extractor": "egemaps", "rate": 20, "bands": 40}, ("audio", "bands"), "not permitted"),
        ("audio", {"extractor": "wav2vec", "rate": 20}, ("audio", "model"), "required"),
        ("vision", {"extractor": "landmarks", "rate": 5, "bands": 4}, ("vision", "bands"), "not permitted"),
    ],
)
def test_a_mistake_is_named_by_its_key(modality: str, value: Any, place: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Extract.model_validate(blocks(**{modality: value}))
    (error,) = refused.value.errors()
    assert error["loc"] == place
    assert message in error["msg"]
