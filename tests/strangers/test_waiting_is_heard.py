"""What takes long before any progress can be told is said."""

from __future__ import annotations

import time

import pytest

from rlaif.cli import console


@pytest.mark.parametrize(("seconds", "heard"), [(0.0, False), (0.5, True)])
def test_a_long_start_is_said_and_a_short_one_not(
    seconds: float, heard: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.1)
    with console.Terminal().waiting("starting"):
        time.sleep(seconds)
    time.sleep(0.2)
    assert ("starting" in capfd.readouterr().err) == heard


def test_lines_come_each_ten_seconds_with_steps_of_five() -> None:
    assert console.LINE_SECONDS <= 5
