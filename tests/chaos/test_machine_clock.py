"""A machine's clocks go wrong for the coordinator alone, while it runs."""

import time
from pathlib import Path

import pytest

from app import clock
from app.clock import elapsed_s, wall_s
from tests.chaos.machine_clock import MachineClock, module_of


def test_clocks_are_set_and_stand_still_while_somebody_goes_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clock"
    machine = MachineClock(file)
    right = elapsed_s() - time.monotonic()
    monkeypatch.setattr(clock, "time", module_of(file))
    assert wall_s() == pytest.approx(time.time(), abs=1.0)
    machine.set_by(3_600.0)
    machine.stood_still(60.0)
    assert wall_s() == pytest.approx(time.time() + 3_540.0, abs=1.0)
    assert elapsed_s() - time.monotonic() == pytest.approx(right - 60.0, abs=1.0)
    machine.set_by(-7_200.0)
    assert wall_s() == pytest.approx(time.time() - 3_660.0, abs=1.0)
