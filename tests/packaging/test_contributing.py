"""What a contributor reads and runs first refers to things that exist, and downloads nothing by itself."""

import json
import re
from typing import Any, Final

import pytest
import yaml

from tests.harness.repository import ROOT

PAGES: Final = ("CONTRIBUTING.md", "SECURITY.md")
TARGETS: Final = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def make_targets(text: str) -> set[str]:
    return set(re.findall(r"(?:^\s*|`)make ([a-z-]+)", text, re.MULTILINE))


def test_the_pages_name_commands_paths_and_links_that_exist() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert make_targets(text) <= TARGETS
        named = re.findall(r"`([\w./-]+/[\w./-]*)`", text) + re.findall(r"\]\(([^):#]+)\)", text)
        missing = [path for path in named if not path.startswith("vendor/") and not (ROOT / path).exists()]
        assert missing == [], page


def test_what_must_pass_calls_targets_that_exist() -> None:
    called = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / ".ci/run").read_text()))
    assert called
    assert called <= TARGETS


def test_the_pages_settings_and_events_are_those_of_the_code() -> None:
    code = "".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    text = (ROOT / "SECURITY.md").read_text()
    assert all(event in code for event in re.findall(r"event=\w+", text))
    assert all(name.lower() in code for name in re.findall(r"HOLDFAST_(\w+)", text))


def test_hooks_are_local_and_run_what_is_installed() -> None:
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [each["repo"] for each in repositories] == ["local"]
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system"
        program, *arguments = hook["entry"].split()
        if program == "make":
            assert set(arguments) <= TARGETS
        else:
            assert program == ".venv/bin/python"
            assert (ROOT / arguments[-1]).exists()


def test_the_workflow_runs_what_must_pass_and_nothing_else() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert [step["uses"].partition("@")[0] for step in steps if "uses" in step] == ["actions/checkout"]


def test_the_dev_container_installs_by_make() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    program, target = container["postCreateCommand"].split()
    assert program == "make"
    assert target in TARGETS
    assert container["image"].startswith("python:3.")


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_ask_for_something(name: str) -> None:
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"]
    assert form["description"]
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len(asked)
    assert all(field["attributes"]["label"] for field in asked)
    assert any(field.get("validations", {}).get("required") for field in asked)
