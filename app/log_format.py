"""What a line of the log looks like: text for people, or JSON for what collects logs (HOLDFAST_LOG_FORMAT).

Log calls name their fields in the text, as in `log.info("event=hung transaction_id=%s branch=%s", …)`, so both formats
are made from the same call, and the JSON has each field as a member of its own.
"""

import json
import logging
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final


class LogFormat(StrEnum):
    """The formats of HOLDFAST_LOG_FORMAT."""

    TEXT = "text"
    JSON = "json"


TEXT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"

_FIELD: Final = re.compile(r"(\w+)=(\S+)\s*")
_PLACE: Final = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")


def formatter_of(log_format: LogFormat) -> logging.Formatter:
    """What makes a line of a record."""
    return JsonLines() if log_format is LogFormat.JSON else logging.Formatter(TEXT)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, the fields of the event, and what is said beside them."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname, "logger": record.name}
        fields, said = _divided(record)
        line |= {name: value for name, value in fields.items() if name not in line}
        if said:
            line["message"] = said
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _divided(record: logging.LogRecord) -> tuple[dict[str, Any], str]:
    """The fields at the beginning of a record's text, and the rest of it."""
    text, values = str(record.msg), list(record.args or ())
    if isinstance(record.args, dict) or len(_PLACE.findall(text.replace("%%", ""))) != len(values):
        return {}, record.getMessage()  # not made as ours are
    fields: dict[str, Any] = {}
    position = 0
    while field := _FIELD.match(text, position):
        name, value = field.groups()
        mine = [values.pop(0) for _ in _PLACE.findall(value)]
        fields[name] = _plain(mine[0]) if mine and _PLACE.fullmatch(value) else value % tuple(mine) if mine else value
        position = field.end()
    return fields, text[position:] % tuple(values) if values else text[position:]


def _plain(value: object) -> object:
    """Numbers as they are, everything else as text."""
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
