"""What the environment may say of the machine."""

import pytest

from qamoe.config import settings
from qamoe.errors import UserError


@pytest.mark.parametrize(
    ("cores", "jobs", "at_once"),
    [(2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 4, 2), (2, 5, 3), (2, 10, 2), (4, 5, 5), (4, 9, 5), (8, 3, 3), (1, 7, 1)],
)
def test_no_core_idles_in_the_last_round(monkeypatch: pytest.MonkeyPatch, cores: int, jobs: int, at_once: int) -> None:
    monkeypatch.delenv("QAMOE_WORKERS", raising=False)
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")
    monkeypatch.setattr(settings, "workers", lambda: cores)
    assert settings.side_by_side(jobs) == at_once


def test_a_gpu_takes_one_job_at_a_time_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("QAMOE_DEVICE", "cuda:1")
    monkeypatch.delenv("QAMOE_WORKERS", raising=False)
    assert settings.side_by_side(5) == 1
    monkeypatch.setenv("QAMOE_WORKERS", "3")
    assert settings.side_by_side(5) == 3


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for asked in ("gpu", "cuda", "cuda:0"):
        monkeypatch.setenv("QAMOE_DEVICE", asked)
        with pytest.raises(UserError, match=f"QAMOE_DEVICE is '{asked}'; on this machine there is cpu"):
            settings.device()


@pytest.mark.parametrize(("asked", "off"), [("", False), ("on", False), ("off", True), ("OFF", None), ("0", None)])
def test_tracking_is_on_or_off_and_nothing_else(monkeypatch: pytest.MonkeyPatch, asked: str, off: bool | None) -> None:
    monkeypatch.setenv("QAMOE_TRACKING", asked)
    if off is None:
        with pytest.raises(UserError, match=f"QAMOE_TRACKING is '{asked}'; allowed are on and off"):
            settings.untracked()
    else:
        assert settings.untracked() is off


def test_a_number_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAMOE_WORKERS", "2")
    assert [settings.side_by_side(jobs) for jobs in (1, 2, 3, 5)] == [1, 2, 2, 2]


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("QAMOE_WORKERS", asked)
    with pytest.raises(UserError, match=r"QAMOE_WORKERS is .*; allowed is a whole number from 1 on"):
        settings.workers()


def test_an_executor_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QAMOE_EXECUTOR", raising=False)
    assert settings.executor() == "processes"
    monkeypatch.setenv("QAMOE_EXECUTOR", "ray")
    assert settings.executor() == "ray"
    monkeypatch.setenv("QAMOE_EXECUTOR", "dask")
    with pytest.raises(UserError, match=r"QAMOE_EXECUTOR is 'dask'; allowed are processes and ray\."):
        settings.executor()
