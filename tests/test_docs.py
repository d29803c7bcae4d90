"""The documentation is true: links lead somewhere, tables and examples are those of the code."""

import ast
import re
import subprocess
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pytest
from fastapi.routing import APIRoute
from pydantic.fields import FieldInfo

from app.api.problems import CATALOGUE
from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings
from examples.run import curls
from holdfast.fence.steps import Refusal
from tests.harness.markdown import Code, Page
from tests.harness.repository import ROOT, listed_by_git

NO_SETTINGS: Final = {"HOLDFAST_URL", "HOLDFAST_API_KEY"}
"""Names with the prefix of settings that are none: where the example services find the coordinator, and their key."""
FRAGMENTS: Final = {"docs/how-to/sqlmodel-and-alembic.md": 1}
"""How many Python examples of a played page are no files; its test puts them where the page says."""
PLAYED: Final = {
    "README.md": "tests/docs/test_commands.py",
    "docs/quickstart.md": "tests/docs/test_commands.py",
    "docs/how-to/sqlmodel-and-alembic.md": "tests/docs/test_guides.py",
    "docs/how-to/test-a-participant.md": "tests/docs/test_guides.py",
}
"""Pages of which every Python example is saved and run, and by which test."""


def pages() -> list[Page]:
    present = listed_by_git("--cached", "--others", "--exclude-standard", "--", "*.md")
    return [Page(path) for path in present if (ROOT / path).is_file()]


def table_rows(text: str) -> list[list[str]]:
    """The cells of all table rows in `text`, without header and rule."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    rules = {number for number, row in enumerate(cells) if all(re.fullmatch(r"-+", cell) for cell in row)}
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def code_names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- every page ------------------------------------------------------------------------------------------------------


def test_every_link_leads_somewhere() -> None:
    assert [fault for page in pages() for fault in broken_links(page)] == []


def broken_links(page: Page) -> Iterator[str]:
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (ROOT / page.path).parent / unquote(parts.path) if parts.path else ROOT / page.path
        if not target.exists():
            yield f"{page.path}: {link}: no such file"
        elif parts.fragment:
            inside = target.resolve().relative_to(ROOT.resolve()).as_posix()
            if parts.fragment not in Page(inside).anchors:
                yield f"{page.path}: {link}: no such heading"


@pytest.mark.parametrize(
    "text", ["[a](missing.md)", "[a](#nowhere)", "[a](docs/README.md#nowhere)", "![a](docs/missing.svg)"]
)
def test_a_broken_link_is_found(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", _with_readme(text))
    assert len(list(broken_links(Page("README.md")))) == 1


def _with_readme(text: str) -> Any:
    real = Path.read_text

    def read_text(self: Path, *args: Any, **kwargs: Any) -> str:
        return text if self == ROOT / "README.md" else real(self, *args, **kwargs)

    return read_text


def test_every_page_that_code_mentions_exists() -> None:
    tracked = listed_by_git("--", "app", "participants", "tests", "alembic", "Makefile", ".ci", "*.yaml", "Dockerfile")
    for path in tracked:
        if path == "tests/test_tidy.py" or not (ROOT / path).is_file():  # it plants pages that break its rules
            continue
        text = (ROOT / path).read_text(encoding="utf-8", errors="ignore")
        for mentioned in re.findall(r"\bdocs/[\w/-]+\.md\b", text):
            assert (ROOT / mentioned).exists() or "missing" in mentioned, f"{path}: {mentioned}"


def test_anchors_are_those_of_github() -> None:
    assert "begin-post-v1transactions" in Page("docs/reference/protocol.md").anchors
    assert "the-table-holdfast_branches" in Page("docs/reference/sdk.md").anchors


def test_every_page_is_in_the_index() -> None:
    index = Page("docs/README.md")
    linked = {(PurePosixPath("docs") / urlsplit(link).path).as_posix() for link in index.links}
    documented = {page.path for page in pages() if page.path.startswith("docs/") and "/decisions/0" not in page.path}
    assert documented - {index.path} <= linked
    decisions = Page("docs/decisions/README.md")
    assert {f"docs/decisions/{link}" for link in decisions.links} == {
        page.path for page in pages() if re.match(r"docs/decisions/\d", page.path)
    }


def test_code_is_fenced_and_says_its_language() -> None:
    """An indented block or a bare fence would escape the tests of commands and examples."""
    known = {"sh", "console", "python", "json", "sql", "yaml", "ini", "nginx", "text", "mermaid", "js", "go"}
    for page in pages():
        if page.path != "README.md" and not page.path.startswith("docs/"):
            continue
        assert not [token for token in page.tokens if token.type == "code_block"], page.path
        unknown = {code.language for step in page.steps if isinstance(step, Code) for code in [step]} - known
        assert not unknown, f"{page.path}: {unknown}"


def test_commands_are_shell() -> None:
    for page in pages():
        for code in page.code("sh", "console"):
            checked = subprocess.run(
                ["bash", "-n"], check=False, input=placeholders_filled(code.text), text=True, capture_output=True
            )
            assert checked.returncode == 0, f"{page.path}:{code.line}: {checked.stderr}"


def placeholders_filled(command: str) -> str:
    return re.sub(r"<[a-z]+>", "filled", command)


def test_every_python_example_is_run() -> None:
    """It stands on a page that a test plays, or it is an excerpt of an example service, which has tests of its own."""
    services = [path.read_text() for path in (ROOT / "participants/examples").glob("*.py")]
    saved = [code.text for path in PLAYED for code in Page(path).code("python") if code.file]
    for page in pages():
        fragments = [code for code in page.code("python") if code.file is None]
        if page.path in PLAYED:
            assert len(fragments) == FRAGMENTS.get(page.path, 0), page.path
            continue
        for code in fragments:
            assert any(code.text in text for text in (*services, *saved)), f"{page.path}:{code.line}: runs nowhere"


def test_played_pages_are_played() -> None:
    for path, test in PLAYED.items():
        assert f'"{path}"' in (ROOT / test).read_text()


def test_the_readme_prints_the_commands_that_make_run_prints() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in curls("http://127.0.0.1:8000", Path("~/holdfast-tour/.run/keys/you")):
        assert command in readme


def test_every_variable_with_our_prefix_is_a_setting() -> None:
    known = {f"HOLDFAST_{name.upper()}" for name in Settings.model_fields} | NO_SETTINGS
    for page in pages():
        named = set(re.findall(r"\bHOLDFAST_[A-Z_]*[A-Z]\b", page.text))
        assert named <= known, page.path


# --- decisions -------------------------------------------------------------------------------------------------------


def test_every_decision_has_a_status_and_a_date_and_the_index_agrees() -> None:
    index = {row[0]: row[1:] for row in table_rows(Page("docs/decisions/README.md").text)}
    for page in pages():
        if not re.match(r"docs/decisions/\d", page.path):
            continue
        header = re.match(r"# (.+)\n\n- Status: (.+)\n- Date: (\d{4}-\d\d-\d\d)\n\n", page.text)
        assert header, page.path
        name = PurePosixPath(page.path).name
        assert index[f"[{name[:4]}]({name})"] == list(header.groups())


# --- reference -------------------------------------------------------------------------------------------------------


def settings_table() -> str:
    """The settings as docs/reference/settings.md shows them, one row each."""
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = f"`{default:.12g}`" if isinstance(default, float) else f"`{default}`"
        rows.append(f"| `{name.upper()}` | {shown} | {allowed(field)} | {field.description} |")
    return "\n".join(rows)


def allowed(field: FieldInfo) -> str:
    """The field's bounds in words: "more than 0, at most 3600"."""
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    bounds = [(word, getattr(each, key, None)) for each in field.metadata for key, word in words.items()]
    return ", ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


def test_every_setting_is_in_the_documented_table() -> None:
    page = Page("docs/reference/settings.md")
    assert settings_table() in page.text, "put this table there:\n" + settings_table()


def test_every_setting_of_the_contract_exists() -> None:
    contract = Page("docs/reference/protocol.md").text.split("## 6.")[1].split("## 7.")[0]
    named = {name.lower() for row in table_rows(contract) for name in code_names(row[0])}
    assert named, "section 6 has a table"
    assert named <= set(Settings.model_fields)


def test_the_table_of_metrics_is_complete_and_true() -> None:
    rows = [row for row in table_rows(Page("docs/reference/metrics.md").text) if row[0].startswith("`holdfast_")]
    documented = {code_names(row[0])[0]: (row[1], set(code_names(row[2]))) for row in rows}
    registry = Metrics().registry
    labels: dict[str, set[str]] = {
        name: set(vars(collector)["_labelnames"])
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
    exposed = {
        metric.name + ("_total" if metric.type == "counter" else ""): (metric.type, labels[metric.name])
        for metric in registry.collect()
    }
    assert documented == exposed


def test_the_table_of_problems_is_complete_and_true() -> None:
    rows = table_rows(Page("docs/reference/api.md").section("Problems"))
    documented = {code_names(slug)[0]: int(status) for slug, status, *_ in rows}
    assert documented == {slug: kind.status for slug, kind in CATALOGUE.items()}


def test_the_table_of_routes_is_complete_and_true() -> None:
    rows = table_rows(Page("docs/reference/api.md").section("Routes"))
    documented = {code_names(row[0])[0] for row in rows}
    routes = [route for route in create_app(Settings()).routes if isinstance(route, APIRoute)]
    assert documented == {
        f"{method} {each.path}" for each in routes if each.include_in_schema for method in each.methods or ()
    }


def test_the_sdk_table_of_answers_is_complete_and_true() -> None:
    documented: set[tuple[int, str]] = set()
    for row in table_rows(Page("docs/reference/sdk.md").section("Answers")):
        documented |= {(int(status), slug) for status, slug in re.findall(r"(\d{3}) `([a-z-]+)`", row[1])}
    source = (ROOT / "participants/holdfast/participant/routes.py").read_text()
    in_code = {(int(status), slug) for status, slug in re.findall(r'\bProblem\(\s*(\d{3}),\s*"([a-z-]+)"', source)}
    assert documented == in_code | {(409, refusal.value) for refusal in Refusal}


# --- log events ------------------------------------------------------------------------------------------------------

Event = tuple[frozenset[str], frozenset[str], bool]
"""Levels, fields, and whether a traceback comes with it."""


def test_the_log_reference_is_complete_and_true() -> None:
    coordinator = documented_events(exclude="The SDK")
    sdk = documented_events(only="The SDK")
    assert coordinator == events_in("app")
    assert sdk == events_in("participants/holdfast")


def documented_events(*, only: str = "", exclude: str = "") -> dict[str, Event]:
    page = Page("docs/reference/logs.md")
    text = page.section(only) if only else page.text.replace(page.section(exclude), "")
    documented: dict[str, Event] = {}
    for event, level, fields, *_ in table_rows(text):
        levels = frozenset(re.findall(r"[A-Z]{4,}", level))
        documented[code_names(event)[0]] = (levels, frozenset(code_names(fields)), "⚠" in event + level)
    return documented


def events_in(folder: str) -> dict[str, Event]:
    """Every `log.<level>("event=<name> field=%s")` below a folder. A log call that begins in another way fails."""
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    traced: set[str] = set()
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))]
    for call in calls(trees):
        if not (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "log"):
            continue
        method = call.func.attr
        text = call.args[1 if method == "log" else 0]
        named = re.match(r"event=([\w%]+)", str(text.value) if isinstance(text, ast.Constant) else "")
        assert named, f"a log line without an event: {ast.unparse(call)}"
        for name in [named[1]] if "%" not in named[1] else [named[1].replace("%s", task) for task in tasks(trees)]:
            levels[name] |= levels_of(call)
            fields[name] |= set(re.findall(r" (\w+)=%", named.string))
            if method == "exception" or any(keyword.arg == "exc_info" for keyword in call.keywords):
                traced.add(name)
    return {name: (frozenset(levels[name]), frozenset(fields[name]), name in traced) for name in levels}


def levels_of(call: ast.Call) -> set[str]:
    """`log.exception` is an ERROR; `log.log` names its level, or several to choose from."""
    assert isinstance(call.func, ast.Attribute)
    match call.func.attr:
        case "exception":
            return {"ERROR"}
        case "log":
            return set(re.findall(r"logging\.([A-Z]+)", ast.unparse(call.args[0])))
        case method:
            return {method.upper()}


def tasks(trees: list[ast.Module]) -> list[str]:
    """The names of the background tasks, of which each has an event for its failure."""
    made = [call for call in calls(trees) if ast.unparse(call.func) == "RepeatingTask"]
    return [str(call.args[0].value) for call in made if isinstance(call.args[0], ast.Constant)]


def calls(trees: list[ast.Module]) -> Iterator[ast.Call]:
    return (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_a_log_line_without_an_event_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "a.py").write_text(textwrap.dedent('log.info("hello %s", name)'))
    monkeypatch.setattr("tests.test_docs.ROOT", tmp_path)
    with pytest.raises(AssertionError, match="without an event"):
        events_in("app")
