"""The latest score of each module, kept in scores.toml for those who have no hours."""

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.mutation.verdict import Verdict

FILE: Final = Path(__file__).with_name("scores.toml")
HEAD: Final = """\
# The latest score of each module, written by `make mutants-all`. `tried` is less than `mutants` where a sample was run.
# survivors.toml says why the explained ones survive; those in `unexplained` are known gaps in the tests.
"""


def record(path: str, verdict: Verdict, file: Path = FILE) -> None:
    """Put the score in the place of the module's last one."""
    scores = read(file)
    scores[path] = {
        "date": datetime.now(UTC).date(),
        "mutants": verdict.mutants,
        "tried": verdict.tried,
        "invalid": verdict.invalid,
        "killed": verdict.killed,
        "explained": len(verdict.explained),
        "score": round(verdict.score, 1),
        "unexplained": [" | ".join(mutant.key) for mutant in verdict.unexplained],
    }
    tables = [f'["{name}"]\n' + "".join(map(_line, scores[name].items())) for name in sorted(scores)]
    file.write_text("\n".join([HEAD, *tables]), encoding="utf-8")


def read(file: Path = FILE) -> dict[str, dict[str, Any]]:
    """The scores by module."""
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _line(entry: tuple[str, Any]) -> str:
    name, value = entry
    if not isinstance(value, list):
        return f"{name} = {value}\n"
    items = "".join(f"  {json.dumps(each, ensure_ascii=False)},\n" for each in value)
    return f"{name} = [\n{items}]\n" if items else f"{name} = []\n"
