"""The log as JSON: each field of an event is a member, and nothing that was said is lost."""

import json
import logging
import sys
from datetime import datetime, timedelta
from typing import Any

import pytest

from app.log_format import LogFormat, formatter_of
from app.protocol.values import HungReason


def line_of(text: str, *values: object, **more: Any) -> dict[str, Any]:
    record = logging.LogRecord("app.engine.run", logging.WARNING, "run.py", 1, text, values, more.get("exc_info"))
    line = formatter_of(LogFormat.JSON).format(record)
    assert "\n" not in line
    parsed: dict[str, Any] = json.loads(line)
    assert datetime.fromisoformat(parsed.pop("time")).utcoffset() == timedelta(0)
    assert (parsed.pop("level"), parsed.pop("logger")) == ("WARNING", "app.engine.run")
    return parsed


@pytest.mark.parametrize(
    ("text", "values", "line"),
    [
        ("event=migrated", (), {"event": "migrated"}),
        (
            "event=hung transaction_id=%s reason=%s",
            ("t-1", HungReason.CONFIRM_REFUSED),
            {"event": "hung", "transaction_id": "t-1", "reason": "confirm_refused"},
        ),
        (
            "event=resolved branch=%s by=%r reason=%r",
            ("car", None, 'it isn\'t\n"there"'),
            {"event": "resolved", "branch": "car", "by": None, "reason": 'it isn\'t\n"there"'},
        ),
        (
            "event=writes_retried writes=%d in %.1f s, at 100%% load",
            (12, 0.25),
            {"event": "writes_retried", "writes": 12, "message": "in 0.2 s, at 100% load"},
        ),
        (
            "event=serving Listens on http://%s:%d",
            ("127.0.0.1", 80),
            {"event": "serving", "message": "Listens on http://127.0.0.1:80"},
        ),
        ("event=%s_failed error=%s", ("recovery", OSError("gone")), {"event": "recovery_failed", "error": "gone"}),
        ("event=odd level=%s", ("high",), {"event": "odd"}),
        ("event=odd share=50%", (), {"event": "odd", "share": "50%"}),
        ("Started server process [%d]", (7,), {"message": "Started server process [7]"}),
        ("a=%(a)s", ({"a": 1},), {"message": "a=1"}),
    ],
)
def test_a_line_has_the_fields_of_its_event(text: str, values: tuple[object, ...], line: dict[str, Any]) -> None:
    assert line_of(text, *values) == line


def test_a_traceback_is_a_member() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = line_of("event=defect path=%s", "/v1", exc_info=sys.exc_info())
    assert (line["event"], line["path"]) == ("defect", "/v1")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: broken")
