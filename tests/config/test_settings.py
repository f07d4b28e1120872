"""The settings of the machine, read from environment variables."""

import re
from pathlib import Path

import pytest

from qamoe.config import settings
from qamoe.errors import UserError


@pytest.mark.parametrize(
    ("cores", "jobs", "at_once"),
    [(2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 2), (2, 5, 3), (2, 10, 2), (4, 5, 5), (4, 9, 5), (8, 3, 3), (1, 7, 1)],
)
def test_the_number_of_parallel_jobs_leaves_no_core_idle_in_the_last_round(
    monkeypatch: pytest.MonkeyPatch, cores: int, jobs: int, at_once: int
) -> None:
    monkeypatch.delenv("QAMOE_WORKERS", raising=False)
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")
    monkeypatch.setattr(settings, "workers", lambda: cores)
    assert settings.side_by_side(jobs) == at_once


def test_a_gpu_runs_one_job_at_a_time_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("QAMOE_DEVICE", "cuda:1")
    monkeypatch.delenv("QAMOE_WORKERS", raising=False)
    assert settings.side_by_side(5) == 1
    monkeypatch.setenv("QAMOE_WORKERS", "3")
    assert settings.side_by_side(5) == 3


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device in ("gpu", "cuda", "cuda:0"):
        monkeypatch.setenv("QAMOE_DEVICE", device)
        with pytest.raises(UserError, match=rf"QAMOE_DEVICE.*'{device}'.*\bcpu\b"):
            settings.device()


@pytest.mark.parametrize(("value", "off"), [("", False), ("on", False), ("off", True), ("OFF", None), ("0", None)])
def test_tracking_is_on_or_off(monkeypatch: pytest.MonkeyPatch, value: str, off: bool | None) -> None:
    monkeypatch.setenv("QAMOE_TRACKING", value)
    if off is None:
        with pytest.raises(UserError, match=rf"QAMOE_TRACKING.*'{value}'.*\bon\b.*\boff\b"):
            settings.untracked()
    else:
        assert settings.untracked() is off


def test_a_given_number_of_workers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAMOE_WORKERS", "2")
    assert [settings.side_by_side(jobs) for jobs in (1, 2, 3, 5)] == [1, 2, 2, 2]


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_an_invalid_number_of_workers_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("QAMOE_WORKERS", value)
    with pytest.raises(UserError, match=rf"QAMOE_WORKERS.*'{re.escape(value)}'.*\b1\b"):
        settings.workers()


def test_an_unknown_executor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QAMOE_EXECUTOR", raising=False)
    assert settings.executor() == "processes"
    monkeypatch.setenv("QAMOE_EXECUTOR", "ray")
    assert settings.executor() == "ray"
    monkeypatch.setenv("QAMOE_EXECUTOR", "dask")
    with pytest.raises(UserError, match=r"QAMOE_EXECUTOR.*'dask'.*processes.*ray"):
        settings.executor()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("QAMOE_DEVICE", ["cpu:x", "cpu:", "cpu:-1", "cpu:0:0", "CPU", " cpu", "cpu:²", "gpu", "cuda:x"]),
        ("QAMOE_WORKERS", ["0", "abc", "-1", "1.5", " 2", "²", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5000]),
        ("QAMOE_BATCH_PARTS", ["0", "abc", "-1"]),
        ("QAMOE_EXECUTOR", ["threads", "Ray"]),
        ("QAMOE_TRACKING", ["yes", "0", "OFF"]),
    ],
)
def test_an_invalid_setting_is_refused_although_nothing_uses_it(
    name: str, values: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qamoe.cli import app

    for value in values:
        monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["qamoe", "check", "nowhere"])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert name in message
        assert repr(value)[:10] in message
        assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"QAMOE_WEIGHTS": "w", "XDG_CACHE_HOME": "/c", "HOME": "/h"}, "w"),
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/qamoe/weights"),
        ({"XDG_CACHE_HOME": "c", "HOME": "/h"}, "/h/.cache/qamoe/weights"),  # XDG: a relative one counts as not set
        ({"HOME": "/h"}, "/h/.cache/qamoe/weights"),
        ({}, "/.cache/qamoe/weights"),
    ],
)
def test_weights_are_kept_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str
) -> None:
    for name in ("QAMOE_WEIGHTS", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings.weights_cache() == Path(folder)
