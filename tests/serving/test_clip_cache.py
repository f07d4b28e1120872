"""Test that the cache of clips is limited, and that samples come from the test split."""

import numpy as np
import pytest

from qamoe.config.task import TaskDescription
from qamoe.errors import UserError
from qamoe.inference.extraction_worker import Extracted
from qamoe.serving.clip_cache import CachedClip, ClipCache, samples

TASK: TaskDescription = {"kind": "regression", "low": -3.0, "high": 3.0, "classes": []}


def clip(key: str, values: int = 10) -> CachedClip:
    return CachedClip(key, Extracted({"audio": np.zeros((values, 1), np.float32)}, {}))


def test_the_least_recently_used_clip_is_dropped():
    clips = ClipCache(most=2)
    first, second = clips.put(clip("1")), clips.put(clip("2"))
    assert clips.get(first) is not None
    third = clips.put(clip("3"))
    assert [clips.get(name) is not None for name in (first, second, third)] == [True, False, True]
    assert len(clips) == 2


def test_bytes_are_limited_and_the_newest_clip_stays():
    clips = ClipCache(most=9, most_bytes=100)
    small, large = clips.put(clip("1", 10)), clips.put(clip("2", 500))
    assert clips.get(small) is None
    assert clips.get(large) is not None


def test_ids_are_long_and_unique():
    clips = ClipCache(most=1000)
    ids = {clips.put(clip("same")) for _ in range(200)}
    assert len(ids) == 200
    assert min(map(len, ids)) >= 24


def test_samples_need_a_corpus(tmp_path):
    assert samples(None, TASK) == []
    with pytest.raises(UserError, match=r"manifest.csv"):
        samples(tmp_path, TASK)


def test_samples_are_one_clip_per_source_from_low_to_high_labels(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    lines = ["clip_id,source,path,start_s,end_s,text,label,split"]
    lines += [f"c{s}-{i},s{s},a.wav,,,words,{s / 10},test" for s in range(20) for i in range(2)]
    lines += ["t,train,a.wav,,,words,-3,train"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    chosen = samples(tmp_path, TASK)
    assert [span.clip_id for span, _ in chosen] == ["c0-0", "c3-0", "c7-0", "c11-0", "c15-0", "c19-0"]
    assert [label for _, label in chosen] == [0.0, 0.3, 0.7, 1.1, 1.5, 1.9]
