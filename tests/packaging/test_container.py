"""Dockerfile and compose.yaml agree with the repository, as far as that shows without a container engine."""

import asyncio
import importlib
import importlib.util
import json
import os
import sys
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from app.settings import Settings
from app.trust import Authority, TrustedHosts
from tests.harness.fault_server import Action, FaultServer, Raw, Reply
from tests.harness.repository import ROOT, listed_by_git

COMPOSE: Final = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: Final[dict[str, Any]] = COMPOSE["services"]
OURS: Final = sorted(name for name, service in SERVICES.items() if "build" in service)
LASTING: Final = sorted(set(SERVICES) - {"migrate"})


def instructions(text: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions: (keyword, the rest on one line)."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines()]
    pairs = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(keyword, " ".join(rest.split())) for keyword, _, rest in pairs]


DOCKERFILE: Final = instructions((ROOT / "Dockerfile").read_text())
COPIED: Final = [
    source
    for keyword, rest in DOCKERFILE
    if keyword == "COPY" and not rest.startswith("--from=")
    for source in rest.split()[:-1]
]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of the stage called `name`, after those of the stage that it stands on."""
    starts = [number for number, (keyword, _) in enumerate(DOCKERFILE) if keyword == "FROM"]
    for start, end in zip(starts, [*starts[1:], len(DOCKERFILE)], strict=True):
        base, _, own_name = DOCKERFILE[start][1].partition(" AS ")
        if own_name == name:
            return (stage(base) if base in targets() else []) + DOCKERFILE[start + 1 : end]
    raise AssertionError(f"the Dockerfile has no stage {name}")


def targets() -> list[str]:
    return [rest.partition(" AS ")[2] for keyword, rest in DOCKERFILE if keyword == "FROM"]


def last(name: str, keyword: str) -> str:
    """What counts when an image of stage `name` runs: its last instruction of that kind."""
    return [rest for found, rest in stage(name) if found == keyword][-1]


@pytest.mark.parametrize("source", COPIED)
def test_what_is_copied_is_tracked_and_reaches_the_build(source: str) -> None:
    assert listed_by_git("--", source), f"git knows nothing at {source}"
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_everything_installed_is_pinned_with_hashes() -> None:
    installs = [rest for keyword, rest in DOCKERFILE if keyword == "RUN" and " install " in rest and "pip" in rest]
    assert len(installs) == 2
    assert all("--require-hashes" in install or "--no-deps" in install for install in installs)


def test_the_image_is_the_coordinator_alone_and_not_root() -> None:
    assert targets()[-1] == "coordinator"
    user, group = last("coordinator", "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    copied = " ".join(rest for keyword, rest in stage("coordinator") if keyword == "COPY")
    assert "examples" not in copied
    assert "tests" not in copied


@pytest.mark.parametrize("name", ["coordinator", "examples"])
def test_processes_are_started_without_a_shell_so_that_sigterm_arrives(name: str) -> None:
    command = json.loads(last(name, "CMD"))
    assert_runs(command)
    assert not [keyword for keyword, _ in stage(name) if keyword in {"ENTRYPOINT", "SHELL"}]


def test_the_images_settings_are_settings() -> None:
    settings = Settings.model_validate(coordinator_settings(image_environment()))
    assert settings.host == "0.0.0.0"
    assert settings.database_url == f"sqlite:///{last('base', 'VOLUME')}/holdfast.db"
    assert str(settings.port) == last("coordinator", "EXPOSE")


@pytest.mark.parametrize(
    ("action", "healthy"),
    [(Reply(200, {}), True), (Reply(503, {}), False), (Raw(b""), False)],
    ids=["200", "503", "no answer"],
)
async def test_the_health_check_tells_healthy_from_not(action: Action, healthy: bool) -> None:
    program = json.loads(last("coordinator", "HEALTHCHECK").partition(" CMD ")[2])
    async with FaultServer() as server:
        server.script("/healthz", [action])
        assert await status_of(program, server.url()) == (0 if healthy else 1)
        assert [request.path for request in server.requests] == ["/healthz"]


async def test_the_health_check_fails_when_nothing_listens() -> None:
    program = json.loads(last("coordinator", "HEALTHCHECK").partition(" CMD ")[2])
    async with FaultServer() as server:
        assert await status_of(program, server.refused_url()) == 1


def test_compose_has_the_coordinator_a_real_database_and_the_examples() -> None:
    examples = {"inventory", "payment", "shipping", "gateway", "order"}
    assert set(SERVICES) == {"database", "migrate", "coordinator"} | examples
    assert SERVICES["coordinator"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert SERVICES["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert used == COMPOSE["volumes"].keys()


@pytest.mark.parametrize("name", OURS)
def test_what_compose_builds_and_runs_exists(name: str) -> None:
    service = SERVICES[name]
    assert service["build"]["target"] in targets()
    assert_runs(service.get("command") or json.loads(last(service["build"]["target"], "CMD")))


@pytest.mark.parametrize("name", LASTING)
def test_every_lasting_service_restarts_and_has_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or any(keyword == "HEALTHCHECK" for keyword, _ in stage(name))


def test_ports_are_published_on_loopback_only_and_once() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published)


def test_the_coordinator_answers_under_the_names_that_compose_uses() -> None:
    """And under no other: its port is published on loopback, where a browser reaches it."""
    hosts = TrustedHosts.parse(COMPOSE["services"]["coordinator"]["environment"]["HOLDFAST_TRUSTED_HOSTS"])
    asked = urlsplit(COMPOSE["x-example"]["environment"]["HOLDFAST_URL"]).netloc
    for name in (asked, "127.0.0.1:8000", "localhost:8000"):
        assert hosts.trusts(Authority.parse(name)), name
    assert not hosts.trusts(Authority.parse("rebound.example:8000"))


@pytest.mark.parametrize("name", ["coordinator", "migrate"])
def test_the_coordinators_settings_in_compose_are_settings(name: str) -> None:
    environment = image_environment() | SERVICES[name]["environment"]
    settings = Settings.model_validate(coordinator_settings(environment))
    assert settings.database_url.startswith("postgresql+psycopg://")
    assert settings.participants.keys() == ({"inventory", "payment", "shipping"} if name == "coordinator" else set())


def test_a_stop_leaves_time_to_finish_what_is_under_way() -> None:
    assert int(SERVICES["coordinator"]["stop_grace_period"].removesuffix("s")) > Settings().shutdown_timeout_s


def assert_runs(command: list[str]) -> None:
    """The command names a module that is there: `python -m module ...` or `uvicorn module:attribute ...`."""
    match command:
        case ["python", "-m", package, ("serve" | "migrate")]:
            assert importlib.util.find_spec(f"{package}.__main__") is not None
        case ["uvicorn", target, *_]:
            module, _, attribute = target.partition(":")
            assert hasattr(importlib.import_module(module), attribute)
        case _:
            pytest.fail(f"unknown command {command}")


def image_environment() -> dict[str, str]:
    assignments = [word for keyword, rest in stage("coordinator") if keyword == "ENV" for word in rest.split()]
    return dict(assignment.split("=", 1) for assignment in assignments)


def coordinator_settings(environment: dict[str, str]) -> dict[str, Any]:
    """The variables with the coordinator's prefix as input for Settings; an unknown one fails."""
    ours = {name: value for name, value in environment.items() if name.startswith("HOLDFAST_")}
    fields = {name.removeprefix("HOLDFAST_").lower(): value for name, value in ours.items()}
    assert fields.keys() <= Settings.model_fields.keys()
    return {name: json.loads(value) if name == "participants" else value for name, value in fields.items()}


async def status_of(program: list[str], url: str) -> int:
    """The exit status of a health check, run as the image would against a coordinator at `url`."""
    assert program[0] == "python"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program[1:],
        env={**os.environ, "HOLDFAST_PORT": url.rpartition(":")[2]},
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()
