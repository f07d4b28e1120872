"""Properties of overlays, for any mappings: they are merged as RFC 7396 (JSON Merge Patch) merges documents."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamoe.config.overlay import overlaid

KEYS = st.sampled_from(["a", "b", "c"])
scalars = st.sampled_from([0, 1, 2.5, "x", "", True, False])
lists = st.lists(scalars | st.none() | st.dictionaries(KEYS, st.none() | scalars, max_size=1), max_size=2)


def mappings(*, null: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Nested mappings, with null among the values or not."""
    leaves = scalars | lists | (st.none() if null else st.nothing())
    nested = st.recursive(leaves, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
    return st.dictionaries(KEYS, nested, max_size=3)


def sections(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings in which `m` is always a mapping and `a` and `b` never are, as a parameter file has its sections."""
    inner = {"m": sections(depth - 1)} if depth else {}
    return st.fixed_dictionaries({}, optional={"a": scalars | lists, "b": scalars, **inner})


with_null, without_null, of_one_shape = mappings(null=True), mappings(null=False), sections(2)


def merge_patch(target: Any, patch: Any) -> Any:
    """The pseudocode of RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = copy.deepcopy(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            if name in result:
                del result[name]
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def nulls(content: Any) -> int:
    """How many keys of a mapping, and of those within it, are null."""
    return sum(nulls(value) + (value is None) for value in content.values()) if isinstance(content, dict) else 0


@pytest.mark.integration
@given(below=with_null | scalars, above=with_null | scalars | lists)
def test_an_overlay_is_a_json_merge_patch(below: Any, above: Any) -> None:
    assert overlaid(below, above) == merge_patch(below, above)


@pytest.mark.integration
@given(below=with_null)
def test_an_empty_overlay_changes_nothing(below: dict[str, Any]) -> None:
    assert overlaid(below, {}) == below


@pytest.mark.integration
@given(below=with_null, above=with_null)
def test_an_overlay_laid_twice_is_laid_once(below: dict[str, Any], above: dict[str, Any]) -> None:
    once = overlaid(below, above)
    assert overlaid(once, above) == once


@given(first=of_one_shape, second=of_one_shape, third=of_one_shape)
def test_overlays_without_null_may_be_grouped_in_any_way(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    assert overlaid(overlaid(first, second), third) == overlaid(first, overlaid(second, third))


@pytest.mark.integration
@given(below=without_null, above=with_null)
def test_null_removes_a_key_and_none_is_left(below: dict[str, Any], above: dict[str, Any]) -> None:
    merged = overlaid(below, above)
    assert nulls(merged) == 0
    assert {key for key in above if above[key] is None}.isdisjoint(merged)
    assert set(below) - set(above) <= set(merged) <= set(below) | set(above)


@given(below=with_null, above=with_null)
def test_the_inputs_are_not_changed(below: dict[str, Any], above: dict[str, Any]) -> None:
    before = copy.deepcopy((below, above))
    overlaid(below, above)
    assert (below, above) == before
