"""Style that no linter knows, kept by a test. Every rule is seen to fail on a planted violation.

Files are those that git tracks or is about to, but for vendored ones. Words that a rule forbids are spelled in halves
here.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Final

import pytest

from tests.harness.repository import ROOT, listed_by_git

SHIPPED: Final = ("app/", "participants/")
FUNCTION_LINES_MAX: Final = 70
FILE_LINES_MAX: Final = 600
LOCK_FILES: Final = {"uv.lock", "poetry.lock", "Pipfile.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml"}
SLEEPS_ALLOWED: Final[dict[str, str]] = {  # path: why a clock or a signal can't do it
    "tests/benchmark/processes.py": "looks at other processes and databases from outside, which tell nobody",
}

WORDED: Final = ("app/", "participants/", "Makefile", "CONTRIBUTING.md", "SECURITY.md")
STILTED: Final[dict[str, tuple[str, str]]] = {  # pattern: what to write instead, and a sentence that it must find
    r"pass(ed|es|ing)? over": ("ignore", "The header is passed over."),
    r"read about only": ("untested; expected to work", "MySQL: read about only."),
    r"so many": ("the number, `maximum` or `this many`", "Purged after so many days."),
    r"so long": ("`this long`, or the name of the duration", "A connection idle for so long is closed."),
    r"(nobody|somebody|someone|everybody) else": (
        "who it is: another replica, the others",
        "It delays nobody else's calls.",
    ),
    r"(who|what)ever (has|had|gets?|got|asks?|waits?|gave|starts|wants|listens)": (
        "who it is: the caller, the client",
        "Tell whoever waits.",
    ),
    r"insane": ("failing", "A participant that is down, slow or insane."),
    r"under way": ("in progress", "The calls under way at once."),
    r"for ever": ("forever", "It is repeated for ever."),
    r"at the (most|least)": ("at most, at least", "Twenty, at the most."),
    r"anew": ("again", "The payload is validated anew."),
    r"what (has )?(becomes?|became|come) of": ("the state, the result", "What became of the request is unknown."),
    r"affair": ("which module does it", "When is retention's affair."),
    r"(were|was|is) quicker": ("a concurrent write won", "False when another was quicker."),
    r"sa(ys|id|y) no\b(?! more)": ("refuse", "The coordinator said no."),
    r"at work": ("running, in progress", "A handler is at work."),
    r"put off": ("postpone, retry later", "Its others are put off."),
    r"gives? up alone|given up alone": ("release without asking", "A hold that is given up alone."),
    r"(is|are|was|were) to be (?!read)": ("must be, will be", "What is to be done about it."),
    r"for want of": ("because there is no", "It failed for want of a database."),
    r"none of (ours|its)": ("what it isn't", "A cursor that is none of ours."),
    r"its like|the like": ("similar", "Timeouts and the like."),
    r"takes? it for": ("mistake it for, consider it", "Nobody takes it for a success."),
}

Rule = Callable[[str, str, ast.Module], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule: (path, text, syntax tree; empty if not Python) -> what is wrong, in words."""
    RULES[function.__name__] = function
    return function


@rule
def short_functions(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    for node in functions(tree) if path.startswith(SHIPPED) else ():
        lines = (node.end_lineno or 0) - node.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}"


@rule
def short_files(path: str, text: str, _tree: ast.Module) -> Iterator[str]:
    lines = text.count("\n")
    if path.startswith(SHIPPED) and path.endswith(".py") and lines > FILE_LINES_MAX:
        yield f"{lines} lines, more than {FILE_LINES_MAX}"


@rule
def module_docstrings(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    if path.startswith(SHIPPED) and tree.body and not ast.get_docstring(tree):
        yield "the module has no docstring saying what it is responsible for"


@rule
def telling_names(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    if PurePosixPath(path).stem in {"utils", "util", "helpers", "misc"}:
        yield "the name says nothing about what is inside"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Manager"):
            yield f"class {node.name}: say what it does"


@rule
def variables_have_names(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    for node in located(tree):
        is_it = isinstance(node, ast.Name) and node.id == "it" and isinstance(node.ctx, ast.Store)
        if is_it or (isinstance(node, ast.arg) and node.arg == "it"):
            yield f"line {node.lineno}: `it` says nothing; name what it is"


@rule
def database_errors_stay_in_storage(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("app/") or path.startswith("app/storage/"):
        return
    for node in located(tree):
        if any(module.startswith(("sqlalchemy.exc", "psycopg", "pymysql", "sqlite3")) for module in imported(node)):
            yield f"line {node.lineno}: app/storage/errors.py has the words for what a database does wrong"


@rule
def sharing_through_the_harness(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    """What several folders need is in tests/harness, which needs none of them."""
    if not path.startswith("tests/"):
        return
    folder = path.split("/")[1]
    for node in located(tree):
        for module in imported(node):
            package, _, rest = module.partition(".")
            if package == "tests" and rest.partition(".")[0] not in {folder, "harness"}:
                yield f"line {node.lineno}: {module} belongs to another folder; what is shared is in tests/harness"


@rule
def one_clock(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    """What goes by the machine's time moves when somebody sets it."""
    if not path.startswith("app/") or path == "app/clock.py":
        return
    for node in located(tree):
        looks = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
        is_look = isinstance(node, ast.Attribute) and ast.unparse(node) in looks
        if is_look or any(name.partition(".")[0] == "time" for name in imported(node)):
            yield f"line {node.lineno}: the clock of app/clock.py is passed to whoever needs one"


STILTED_IN_DOCS: Final[dict[str, str]] = {  # what to write instead
    r"passed over": "ignored",
    r"read about " r"only": "untested; expected to work",
    r"so many " r"seconds": "name the limit and its unit",
    r"hold no longer " r"than": "maximum hold time",
    r"(?:were|was|is) quicker": "a concurrent write won",
    r"memory " r"forgets": "an in-memory database loses everything on restart",
    r"down, slow or " r"insane": "a failing participant",
    r"who(?:ever)? gets " r"this": "name who it is",
}


@rule
def plain_words(path: str, text: str, _tree: ast.Module) -> Iterator[str]:
    """The same for pages. Decisions are records, and are never rewritten."""
    if not path.endswith(".md") or path.startswith(("tests/", "docs/decisions/")):
        return
    for phrase, better in STILTED_IN_DOCS.items():
        if found := re.search(phrase, text, re.IGNORECASE):
            yield f"{found[0]!r}: write: {better}"


@rule
def nothing_left_to_do(_path: str, text: str, _tree: ast.Module) -> Iterator[str]:
    if found := re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b", text):
        yield f"{found[0]}: do it, or write an issue"


@rule
def plain_english(path: str, text: str, _tree: ast.Module) -> Iterator[str]:
    """Phrases that a native engineer wouldn't write, in code, comments, docstrings and messages alike."""
    for number, line in enumerate(text.splitlines() if path.startswith(WORDED) else (), 1):
        for pattern, (instead, _) in STILTED.items():
            if found := re.search(rf"\b({pattern})\b", line, re.IGNORECASE):
                yield f"line {number}: “{found[0]}”: write {instead}"


@rule
def no_sleeps_in_tests(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("tests/") or path in SLEEPS_ALLOWED:
        return
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        sleeps = ast.unparse(call.func) in {"time.sleep", "asyncio.sleep", "anyio.sleep", "sleep"}
        if sleeps and [ast.unparse(argument) for argument in call.args] != ["0"]:
            yield f"line {call.lineno}: wait for a signal or move a fake clock, never sleep"


@rule
def checking_tests(path: str, _text: str, tree: ast.Module) -> Iterator[str]:
    """A helper called check_... or assert_... counts, as does an assertion of a mock."""
    for node in functions(tree) if PurePosixPath(path).name.startswith("test_") else ():
        if node.name.startswith("test_") and not any(checks(inner) for inner in ast.walk(node)):
            yield f"{node.name} checks nothing"


@rule
def no_files_that_break_others(path: str, _text: str, _tree: ast.Module) -> Iterator[str]:
    if path == "alembic/__init__.py":
        yield "shadows the library alembic"
    if PurePosixPath(path).name in LOCK_FILES:
        yield "records where packages were downloaded; requirements/ pins them with hashes"


@rule
def no_addresses_of_registries(_path: str, text: str, _tree: ast.Module) -> Iterator[str]:
    hosts = (
        r"files\.python" r"hosted|py" r"pi\.org/simple|registry\.npm" r"js|^--(extra-)?index-" r"url|^--find-" r"links"
    )
    if found := re.search(hosts, text, re.MULTILINE):
        yield f"{found[0]}: an address that belongs into the configuration of whoever installs"


@rule
def no_paths_of_a_machine(_path: str, text: str, _tree: ast.Module) -> Iterator[str]:
    if found := re.search(r"(?<![\w.:/}])/(work|home|root|Users|private/var)/[\w.]+", text):
        yield f"{found[0]}: a path of one machine"


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def located(tree: ast.AST) -> Iterator[ast.expr | ast.stmt | ast.arg]:
    """The nodes that have a line, of those that rules look for."""
    return (node for node in ast.walk(tree) if isinstance(node, (ast.expr, ast.stmt, ast.arg)))


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports, in full; of `from a import b`, where b may be a module, a.b."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def checks(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return name in {"pytest.raises", "pytest.fail"} or name.split(".")[-1].startswith(("assert", "check"))
    return isinstance(node, ast.Assert)


def violations(path: str, text: str) -> list[str]:
    tree = ast.parse(text) if path.endswith(".py") else ast.Module([], [])
    return [f"{path}: {name}: {what}" for name, check in RULES.items() for what in check(path, text, tree)]


def test_every_file_keeps_every_rule() -> None:
    paths = listed_by_git("--cached", "--others", "--exclude-standard")
    present = [path for path in paths if (ROOT / path).is_file() and "/vendor/" not in path]
    texts = {path: (ROOT / path).read_text(encoding="utf-8", errors="ignore") for path in present}
    assert [violation for path, text in texts.items() for violation in violations(path, text)] == []


PLANTED: Final = [
    ("short_functions", "app/a.py", '"""A."""\ndef f():\n' + "    f()\n" * 70),
    ("short_files", "participants/holdfast/a.py", '"""A."""\n' + "# long\n" * 600),
    ("module_docstrings", "app/a.py", "import ast\n"),
    ("telling_names", "app/utils.py", ""),
    ("telling_names", "tests/a.py", "class BranchManager: ..."),
    ("variables_have_names", "app/a.py", '"""A."""\nfor it in range(2):\n    f(it)\n'),
    ("variables_have_names", "tests/api/a.py", "until(lambda it: it.hung)"),
    ("variables_have_names", "participants/holdfast/a.py", '"""A."""\ndef f(it): ...\n'),
    ("database_errors_stay_in_storage", "app/a.py", '"""A."""\nfrom sqlalchemy.exc import DBAPIError\n'),
    ("database_errors_stay_in_storage", "app/api/a.py", '"""A."""\nimport sqlalchemy.exc\n'),
    ("sharing_through_the_harness", "tests/chaos/a.py", "from tests.engine.processes import Plan"),
    ("sharing_through_the_harness", "tests/harness/a.py", "import tests.chaos.load"),
    ("sharing_through_the_harness", "tests/api/a.py", "from tests import conftest"),
    ("sharing_through_the_harness", "tests/conftest.py", "from tests.chaos import proxy"),
    ("one_clock", "app/a.py", '"""A."""\nfrom time import monotonic\n'),
    ("one_clock", "app/engine/a.py", '"""A."""\ndef now():\n    return datetime.now(UTC)\n'),
    ("plain_words", "docs/a.md", "Unknown preferences are passed over."),
    ("nothing_left_to_do", "README.md", "TO" "DO: write this"),
    ("nothing_left_to_do", "tests/a.py", "# XX" "X why"),
    ("plain_english", "app/a.py", '"""A."""\n# Calls under way.\n'),
    ("plain_english", "participants/holdfast/a.py", '"""A."""\nraise ValueError("passed over")\n'),
    ("no_sleeps_in_tests", "tests/a.py", "await asyncio.sleep(0.1)"),
    ("no_sleeps_in_tests", "tests/a.py", "from time import sleep\nsleep(delay)"),
    ("checking_tests", "tests/test_a.py", "async def test_a():\n    def inner(): ...\n    inner()"),
    ("no_files_that_break_others", "alembic/__init__.py", ""),
    ("no_files_that_break_others", "docs/package-lock.json", "{}"),
    ("no_addresses_of_registries", "requirements/run.txt", "a==1\n--index-" "url https://example.org/"),
    ("no_addresses_of_registries", "docs/a.md", "see https://files.python" "hosted.org/packages/a"),
    ("no_paths_of_a_machine", "docs/a.md", "run `/wor" "k/main/a.sh`"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "text"), PLANTED)
def test_a_planted_violation_is_found_by_its_rule_alone(name: str, path: str, text: str) -> None:
    found = violations(path, text)
    assert [violation.split(": ")[1] for violation in found] == [name]


@pytest.mark.parametrize(("pattern", "sentence"), [(pattern, sentence) for pattern, (_, sentence) in STILTED.items()])
def test_every_stilted_phrase_is_found(pattern: str, sentence: str) -> None:
    assert re.search(rf"\b({pattern})\b", sentence, re.IGNORECASE)
    assert violations("app/a.py", f'"""{sentence}"""\n')


def test_every_rule_was_seen_to_fail() -> None:
    assert {name for name, _, _ in PLANTED} == RULES.keys()


def test_what_only_looks_like_a_violation_is_let_through() -> None:
    assert violations("tests/test_a.py", "def test_a():\n    check_all()\n    asyncio.sleep(0)") == []
    assert violations("docs/a.md", "GET http://example.org/home/a, ./work/a, to do") == []
    assert violations("app/api/__init__.py", "") == []
    assert (
        violations("tests/chaos/a.py", "from tests.chaos import load\nfrom tests.harness.ledger import metadata") == []
    )
