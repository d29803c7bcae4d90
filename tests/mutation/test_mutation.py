"""`make mutants` can fail: a survivor that nobody explained, an explanation that is no longer true, a low score."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.harness.repository import ROOT
from tests.mutation import verdict
from tests.mutation.verdict import Explained, Mutant, judged

A = Mutant("f", "x < 1", "x <= 1", 3, "")
B = Mutant("g", "x < 1", "x <= 1", 9, "")
WHY_A = Explained(A.key, "x is never 1")
SURVIVORS = tomllib.loads(verdict.FILE.read_text(encoding="utf-8"))["survivor"]


def test_a_survivor_must_be_explained() -> None:
    assert judged(100, 0, 0, [], []).good
    assert judged(100, 0, 0, [A], [WHY_A]).good
    assert not judged(100, 0, 0, [A], []).good
    assert judged(100, 0, 0, [A, B], [WHY_A]).unexplained == (B,), "the same words elsewhere are another mutant"
    assert judged(100, 0, 0, [A, A], [WHY_A]).unexplained == (A,), "an entry explains one"


def test_what_is_explained_must_survive() -> None:
    verdict = judged(100, 0, 0, [], [WHY_A])
    assert verdict.gone == (A.key,)
    assert not verdict.good


def test_explanations_do_not_make_up_for_a_low_score() -> None:
    assert judged(120, 100, 0, [A], [WHY_A]).score == 95
    assert judged(120, 100, 0, [A], [WHY_A]).good
    assert not judged(119, 100, 0, [A], [WHY_A]).good, "one that can't be imported was not killed by a test"
    assert not judged(0, 0, 0, [], []).good


@pytest.mark.parametrize("entry", SURVIVORS, ids=lambda entry: entry["becomes"])
def test_an_explained_survivor_speaks_of_the_code_as_it_is(entry: dict[str, str]) -> None:
    source = " ".join((ROOT / entry["module"]).read_text(encoding="utf-8").split())
    assert entry["was"] in source
    assert entry["why"]


def test_mistakes_are_made_of_every_kind(tmp_path: Path) -> None:
    pytest.importorskip("mutmut", reason="installed by make mutants")
    from tests.mutation.mutants import members, mutants

    module = tmp_path / "module.py"
    module.write_text(
        'class E(StrEnum):\n    A = "a"\n    B = "b"\n    C = "c"\n'
        "T: dict[E, tuple[int, int]] = {\n    1: (p, q),\n    2: (r, q),\n}\n\n\n"
        "@final(1)\ndef f(x: E | None) -> list[E]:\n"
        '    assert x is not E.A or y, "words"\n'
        "    if x:\n        return [g(i, E.C) for i in x if i]\n"
    )
    made = {(mutant.within, mutant.was, mutant.becomes) for mutant in mutants(module, members(module))}
    assert {
        ("E", 'A = "a"', 'A = "A"'),
        ("", "1: (p, q),", "1: (r, q),"),
        ("", "2: (r, q),", "2: (p, q),"),
        ("f", 'assert x is not E.A or y, "words"', 'assert x is not E.B or y, "words"'),
        ("f", 'assert x is not E.A or y, "words"', 'assert x is not E.A and y, "words"'),
        ("f", 'assert x is not E.A or y, "words"', 'assert x is not E.A, "words"'),
        ("f", 'assert x is not E.A or y, "words"', 'assert y, "words"'),
        ("f", "if x:", "if (x) and False:"),
        ("f", "if x:", "if (x) or True:"),
        ("f", "return [g(i, E.C) for i in x if i]", "return [g(i, E.A) for i in x if i]"),
        ("f", "return [g(i, E.C) for i in x if i]", "return [g(i, None) for i in x if i]"),
        ("f", "return [g(i, E.C) for i in x if i]", "return [g(i, E.C) for i in x if (i) and False]"),
    } <= made
    changed = " ".join(becomes for _, _, becomes in made)
    assert "final" not in changed
    assert "E & None" not in changed
    assert "XXwordsXX" not in changed


RUN = """
import json
from dataclasses import replace
from pathlib import Path
from tests.mutation.runs import Stage, limited, prepare, run, warm_up
from tests.mutation.verdict import Mutant

sources = json.loads({sources!r})
path = Path("counted.py")
warm_up()
prepare("counted", ())
stage = replace(limited("counted", path, Stage("--rootdir=. test_counted.py")), processor_max_s=2)
mutants = [Mutant("", "", name, 1, source) for name, source in sources.items()]
ended = {{it.becomes: how for it, how in run("counted", path, mutants, stage)}}
print(json.dumps({{name: (how.survived, how.invalid, how.endless) for name, how in ended.items()}}))
"""


def test_what_becomes_of_a_mutant(tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text("def count():\n    return 1\n")
    (tmp_path / "test_counted.py").write_text("import counted\n\ndef test_it():\n    assert counted.count() == 1\n")
    sources = {
        "equivalent": "def count():\n    return 2 - 1\n",
        "wrong": "def count():\n    return 2\n",
        "endless": "def count():\n    while True:\n        pass\n",
        "invalid": "count = 1 / 0\n",
    }
    script = RUN.format(sources=json.dumps(sources))
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "equivalent": [True, False, False],
        "wrong": [False, False, False],
        "endless": [False, False, True],
        "invalid": [False, True, False],
    }
