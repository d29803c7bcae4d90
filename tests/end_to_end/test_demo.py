"""`make demo`: seven stories with real processes, each of which ended as it must."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Final

from tests.harness.repository import ROOT

OUTCOMES: Final = {
    "1. Booked": ["confirmed"],
    "2. Refused": ["cancelled (refused: insufficient funds)"],
    "3. Participant down": ["confirmed"],
    "4. Coordinator killed between the decision and the first Confirm": ["confirmed"],
    "5. Initiator and coordinator vanish after the Try": ["order-5 cancelled (timed_out", "order-6 confirmed"],
    "6. A saga is undone in reverse while a service is down": ["cancelled (refused: insufficient funds)"],
    "7. The answer of the point of no return is lost": ["confirmed"],
}
WITHIN_S: Final = 150


async def test_all_seven_stories_end_as_they_must(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.demo", cwd=ROOT, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(WITHIN_S):
        out, err = (stream.decode() for stream in await demo.communicate())
    assert demo.returncode == 0, out + err
    assert err == ""
    for title, text in stories_in(out).items():
        for outcome in OUTCOMES[title]:
            assert outcome in text.partition("   outcome ")[2], text
        assert "FAILED" not in text
    assert stories_in(out).keys() == OUTCOMES.keys()
    assert "confirm_unanswered" in stories_in(out)["3. Participant down"]
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert os.listdir(tmp_path) == [], "nothing stays behind"


def stories_in(out: str) -> dict[str, str]:
    """Title → what is told under it."""
    lines = out.splitlines()
    starts = [number for number, line in enumerate(lines) if line in OUTCOMES]
    ends = [*starts[1:], len(lines)]
    return {lines[start]: "\n".join(lines[start:end]) for start, end in zip(starts, ends, strict=True)}
