"""What users install: the wheel `holdfast` and nothing beside it, next to a service that has its own `app`."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from holdfast import __version__

ROOT = Path(__file__).parents[2]
SDK = ROOT / "participants"
PROJECT = tomllib.loads((SDK / "pyproject.toml").read_text())["project"]
NAME = f"{PROJECT['name']}-{__version__}"
SDK_MODULES = {path.relative_to(SDK).as_posix() for path in (SDK / "holdfast").rglob("*.py")}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist of participants/ and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, SDK)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel alone was installed."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps")
    run(*pip, "--target", folder, dist / f"{NAME}-py3-none-any.whl")
    return folder


def test_the_wheel_holds_the_sdk_its_licence_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    code = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
    assert code == SDK_MODULES | {"holdfast/py.typed"}
    assert f"{NAME}.dist-info/licenses/LICENSE" in names


def test_the_sdist_holds_the_same_and_what_builds_it(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as sdist:
        names = {name.removeprefix(f"{NAME}/") for name in sdist.getnames()}
    about = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}
    assert names - {".gitignore"} == SDK_MODULES | {"holdfast/py.typed"} | about


def test_a_service_keeps_its_own_app(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("OWNER = 'the service'\n")
    program = """
        import importlib, pkgutil, sys
        import holdfast
        assert holdfast.__file__.startswith(sys.argv[1]), holdfast.__file__
        for module in pkgutil.walk_packages(holdfast.__path__, "holdfast."):
            importlib.import_module(module.name)
        assert "app" not in sys.modules, "holdfast imports app"
        import app
        assert app.OWNER == "the service"
    """
    run(sys.executable, "-c", unindented(program), installed, cwd=tmp_path, path=installed)
    assert not (installed / "app").exists()


def test_the_coordinator_cannot_be_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert not settings.keys() & {"project", "build-system"}
    assert not [name for name in ("setup.py", "setup.cfg") if (ROOT / name).exists()]


def run(*command: str | Path, cwd: Path = ROOT, path: Path | None = None) -> None:
    """Run to the end; what it printed is the message of the failure."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def unindented(program: str) -> str:
    return "\n".join(line.removeprefix(" " * 8) for line in program.splitlines())
