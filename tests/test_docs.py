"""The documentation is true: its tables and examples are those of the code."""

import re

from pydantic.fields import FieldInfo

from app.metrics import Metrics
from app.settings import Settings
from examples.run import curls
from tests.harness.repository import ROOT


def settings_table() -> str:
    """The settings as docs/operations.md shows them, one row each."""
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        rows.append(f"| `{name.upper()}` | {shown} | {allowed(field)} | {field.description} |")
    return "\n".join(rows)


def allowed(field: FieldInfo) -> str:
    """The field's bounds in words: "more than 0, at most 3600"."""
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    bounds = [(word, getattr(each, key, None)) for each in field.metadata for key, word in words.items()]
    return ", ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


def python_blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_every_setting_is_in_the_documented_table() -> None:
    assert settings_table() in (ROOT / "docs/operations.md").read_text(), "put this table there:\n" + settings_table()


def test_the_readme_shows_the_example_that_the_sdk_guide_shows_and_tests() -> None:
    example = python_blocks("docs/sdk.md")[0]
    assert "include_router" in example
    assert example in python_blocks("README.md")


def test_every_setting_of_the_contract_exists() -> None:
    contract = (ROOT / "docs/protocol.md").read_text().split("## 6.")[1].split("## 7.")[0]
    named = {
        name.lower()
        for row in re.findall(r"^\| (`.*?`) \|", contract, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert named, "section 6 has a table"
    assert named <= set(Settings.model_fields)


def test_the_readme_prints_the_commands_that_make_run_prints() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in curls("http://127.0.0.1:8000"):
        assert command in readme


def test_every_metric_is_in_the_documented_table() -> None:
    documented = (ROOT / "docs/operations.md").read_text().split("## Health")[1].split("##")[0]
    for metric in Metrics().registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        assert f"`{name}`" in documented
