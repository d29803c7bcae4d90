"""`make mutants` can fail: a survivor that nobody explained, an explanation that is no longer true, a low score."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.harness.repository import ROOT
from tests.mutation import scores, verdict
from tests.mutation.targets import TARGETS
from tests.mutation.verdict import Explained, Mutant, Verdict, judged

A = Mutant("f", "x < 1", "x <= 1", 3, "")
B = Mutant("g", "x < 1", "x <= 1", 9, "")
WHY_A = Explained(A.key, "x is never 1")
SURVIVORS = tomllib.loads(verdict.FILE.read_text(encoding="utf-8"))["survivor"]


def verdict_on(survivors: list[Mutant], known: list[Explained], tried: int = 100, invalid: int = 0) -> Verdict:
    return judged(200, tried, invalid, 0, survivors, known)


def test_targets_and_their_tests_are_there() -> None:
    named = [word for target in TARGETS for stage in target.stages for word in stage.arguments.split() if "/" in word]
    assert named
    assert [path for path in (*named, *(target.path for target in TARGETS)) if not (ROOT / path).is_file()] == []


def test_a_survivor_must_be_explained() -> None:
    assert verdict_on([], []).is_good(95)
    assert verdict_on([A], [WHY_A]).is_good(95)
    assert not verdict_on([A], []).is_good(95)
    assert verdict_on([A, B], [WHY_A]).unexplained == (B,), "the same words elsewhere are another mutant"
    assert verdict_on([A, A], [WHY_A]).unexplained == (A,), "an entry explains one"


def test_what_is_explained_must_survive() -> None:
    found = verdict_on([], [WHY_A])
    assert found.gone == (A.key,)
    assert not found.is_good(95)


def test_explanations_do_not_make_up_for_a_low_score() -> None:
    assert verdict_on([A], [WHY_A], tried=120, invalid=100).score == 95
    assert verdict_on([A], [WHY_A], tried=120, invalid=100).is_good(95)
    assert not verdict_on([A], [WHY_A], tried=119, invalid=100).is_good(95), "an import error is no test that failed"
    assert not verdict_on([], [], tried=0).is_good(95)


def test_a_score_is_kept_in_the_place_of_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "scores.toml"
    scores.record("b.py", verdict_on([A], []), file)
    scores.record("a.py", verdict_on([], []), file)
    scores.record("b.py", verdict_on([A, B], [WHY_A], tried=50, invalid=10), file)
    kept = scores.read(file)
    assert list(kept) == ["a.py", "b.py"]
    assert kept["a.py"]["unexplained"] == []
    del kept["b.py"]["date"]
    assert kept["b.py"] == {
        "mutants": 200,
        "tried": 50,
        "invalid": 10,
        "killed": 38,
        "explained": 1,
        "score": 95.0,
        "unexplained": ["g | x < 1 | x <= 1"],
    }


def test_scores_speak_of_modules_that_are_mutated() -> None:
    pytest.importorskip("mutmut", reason="installed by make mutants")
    from tests.mutation.targets import TARGETS

    paths = [target.path for target in TARGETS]
    assert all((ROOT / path).is_file() for path in paths)
    assert len(set(paths)) == len(paths)
    assert set(scores.read()) <= set(paths)


def test_what_imports_a_module_is_imported_anew_with_it() -> None:
    from tests.mutation.runs import importers

    assert {"app.engine.run", "app.engine.coordinator", "app.main"} <= importers("app.engine.run")
    assert not {"app.engine.waiters", "app.storage.transactions", "holdfast"} & importers("app.engine.run")
    assert "holdfast.wire" in importers("holdfast.fence.table"), "its package imports the table"


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
        "U = E | Other\nF = LEFT | RIGHT\n"
        "T: dict[E, tuple[int, int]] = {\n    1: (p, q),\n    2: (r, q),\n}\n\n\n"
        "@final(1)\ndef f(x: E | None) -> list[E]:\n"
        '    assert x is not E.A or y, "words"\n'
        '    log.info("read", 1 < 2)\n'
        '    spawn(E.A, name="told")\n'
        '    raise TestError("text", x < 1)\n'
        "    if x:\n        return [g(i, E.C) for i in x if i]\n"
    )
    made = {(each.within, each.was, each.becomes) for each in mutants(module, members(module))}
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
    assert "U = None" not in changed
    assert "F = None" in changed
    assert not [text for text in ("words", "read", "told", "text") if f"XX{text}XX" in changed]
    assert {
        ("f", 'raise TestError("text", x < 1)', 'raise TestError("text", x <= 1)'),
        ("f", 'spawn(E.A, name="told")', 'spawn(E.B, name="told")'),
    } <= made
    assert not [
        was for _, was, becomes in made if "log.info" in was or "spawn(E.A, )" in becomes or "None, x" in becomes
    ]


def test_a_mutant_of_a_method_is_the_class_with_one_mistake(tmp_path: Path) -> None:
    pytest.importorskip("mutmut", reason="installed by make mutants")
    from tests.mutation.mutants import mutants

    module = tmp_path / "module.py"
    source = "import a\n\n\nclass C:\n    x = 1\n\n    def f(self):  # why\n        return 3\n\n    def g(self): ...\n"
    module.write_text(source)
    made = {mutant.source: mutant.within for mutant in mutants(module, {})}
    assert made == {
        source.replace("x = 1", "x = 2"): "C",
        source.replace("x = 1", "x = None"): "C",
        source.replace("3", "4"): "C.f",
    }


RUN = """
import json
from dataclasses import replace
from pathlib import Path
from tests.mutation.runs import Stage, limited, prepare, run, warm_up
from tests.mutation.verdict import Mutant

sources = json.loads({sources!r})
path = Path("counted.py")
warm_up()
prepare("counted")
stage = replace(limited("counted", path, Stage("--rootdir=. test_counted.py")), processor_max_s=2)
mutants = [Mutant("", "", name, 1, source) for name, source in sources.items()]
idle = Mutant("", "", "idle", 1, "import time; count = lambda: time.sleep(60)")
ended = {{mutant.becomes: how for mutant, how in run("counted", path, mutants, stage, 2)}}
ended |= {{"idle": how for _, how in run("counted", path, [idle], replace(stage, wall_max_s=3), 1)}}
print(json.dumps({{name: (how.survived, how.invalid, how.endless) for name, how in ended.items()}}))
"""


def test_what_becomes_of_a_mutant(tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text("def count():\n    return 1\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 30\n")
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
        "idle": [False, False, True],
    }
