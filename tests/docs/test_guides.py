"""The guides with files and commands that need no network: done as a reader does them, with this environment."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.reader import Reader
from tests.harness.markdown import Code, Page

ALEMBIC = "docs/how-to/sqlmodel-and-alembic.md"


@pytest.fixture(autouse=True)
def _environment_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")


@pytest.fixture
def guided(tmp_path: Path) -> Reader:
    """A reader who begins in the empty home folder, and starts nothing that listens."""
    return Reader(tmp_path, begins_in=tmp_path, loopback=[])


def run(reader: Reader, command: str) -> str:
    (pasted,) = reader.paste(command)
    return pasted.output


SCENARIO = """
import asyncio
from sqlmodel import Session
from holdfast.testing import FakeCoordinator
from main import Show, engine, seats

with Session(engine) as session:
    session.add(Show(name="Faust", free=5))
    session.commit()

def show():
    with Session(engine) as session:
        found = session.get_one(Show, "Faust")
        return f"free {found.free}, sold {found.sold}"

async def scenario():
    async with FakeCoordinator(seats) as coordinator:
        first, second, third = (coordinator.branch({"show": "Faust", "quantity": 2}) for _ in range(3))
        print([(await branch.try_()).status for branch in (first, second, third)], show())
        print((await first.confirm()).ok, (await second.cancel()).ok, show())

asyncio.run(scenario())
"""


def test_a_participant_with_sqlmodel_and_alembic(guided: Reader) -> None:
    """The tables are created and used; a table that the SDK made stays, by its hook or by the page's own function."""
    page = Page(ALEMBIC)
    pasted = guided.read(page)
    assert "No new upgrade operations detected" in pasted[-1].output
    (guided.home / "scenario.py").write_text(SCENARIO)
    printed = run(guided, "python scenario.py").splitlines()
    assert printed == ["[200, 200, 409] free 1, sold 0", "True True free 3, sold 2"]

    main, env = guided.home / "main.py", guided.home / "migrations/env.py"
    main.write_text(main.read_text().replace("    metadata=SQLModel.metadata,\n", ""))
    assert "No new upgrade operations detected" in run(guided, "alembic check")
    with_hook = env.read_text()
    env.write_text(with_hook.replace("            include_object=include_object,\n", ""))
    assert "drop_table('holdfast_branches')" in proposed(guided)

    (own,) = (code.text for code in page.code("python") if code.file is None)
    without_import = with_hook.replace("import include_object, render_item", "import render_item")
    env.write_text(without_import.replace("\n\ndef ", f"\n\n{own}\n\ndef ", 1))
    assert "No new upgrade operations detected" in run(guided, "alembic check")


def proposed(reader: Reader) -> str:
    """A migration that Alembic would generate now; it is not kept."""
    versions = reader.home / "migrations/versions"
    before = set(versions.glob("*.py"))
    run(reader, "alembic revision --autogenerate -m proposed")
    (new,) = set(versions.glob("*.py")) - before
    text = new.read_text()
    new.unlink()
    return text


def test_without_render_item_a_generated_migration_fails(guided: Reader) -> None:
    """What the page warns of is so: when Alembic can do without, the page shall say so."""
    page = Page(ALEMBIC)
    page.steps = [without_render_item(step) if isinstance(step, Code) else step for step in page.steps]
    with pytest.raises(AssertionError, match="name 'holdfast' is not defined"):
        guided.read(page)


def without_render_item(code: Code) -> Code:
    return replace(code, text=code.text.replace("            render_item=render_item,\n", ""))


def test_the_tests_of_the_testing_guide_pass(guided: Reader) -> None:
    quickstart = Page("docs/quickstart.md")
    (seats,) = [code for code in quickstart.code("python") if code.file == "seats.py"]
    (guided.home / "seats.py").write_text(seats.text)
    guided.read(Page("docs/how-to/test-a-participant.md"))
    assert "4 passed" in run(guided, "python -m pytest -q -p no:cacheprovider -o asyncio_mode=auto")
