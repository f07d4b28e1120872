"""Which champion a candidate is held against, and when a decision stands; see also tests/pipeline/test_promote.py."""

import pytest

from qamoe.errors import UserError
from qamoe.registry import registry
from qamoe.registry.registry import Champion


def test_another_corpus_is_refused_by_name():
    config = {
        "stats": {"about": {"corpus": "a"}},
        "task": {"kind": "regression"},
        "inputs": {"text": 384},
        "extract": {},
    }
    registry.same_corpus(config, config, "qa-moe", "1")
    for changed in (
        {"stats": {"about": {"corpus": "b"}}},
        {"inputs": {"text": 384, "audio": 2}},
        {"task": {"kind": "other"}},
    ):
        with pytest.raises(UserError, match=r"champion of qa-moe \(version 1\).*registry\.name"):
            registry.same_corpus(config, config | changed, "qa-moe", "1")


def test_a_gate_is_another_one_when_anything_it_depends_on_is(tiny_params):
    block = tiny_params.registry
    first = registry.gate_key("clips", 1, block, None)
    assert first == registry.gate_key("clips", 1, block, None)
    others = {
        registry.gate_key("other", 1, block, None),
        registry.gate_key("clips", 2, block, None),
        registry.gate_key("clips", 1, block.model_copy(update={"coverage_90": (0.5, 1.0)}), None),
        registry.gate_key("clips", 1, block, Champion("1", "a")),
        registry.gate_key("clips", 1, block, Champion("2", "b")),
    }
    assert len(others - {first}) == 5
    assert registry.gate_key("clips", 1, block, Champion("1", "a")) == registry.gate_key(
        "clips", 1, block, Champion("7", "a")
    )
