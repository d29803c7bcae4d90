"""What the guides for operators say to deploy agrees with the code, as far as that shows without a cluster."""

import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
import yaml
from fastapi.routing import APIRoute

from app.main import create_app
from app.settings import Settings
from app.storage.migrations import migrate
from tests.harness.markdown import Page
from tests.harness.postgres import PostgresServer
from tests.harness.repository import ROOT

GUIDE: Final = Page("docs/how-to/kubernetes-and-systemd.md")
(MANIFESTS,) = (list(yaml.safe_load_all(code.text)) for code in GUIDE.code("yaml"))
(UNIT,) = (code.text for code in GUIDE.code("ini"))


def manifest(kind: str) -> Any:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind]
    return found


def container(kind: str) -> Any:
    (found,) = manifest(kind)["spec"]["template"]["spec"]["containers"]
    return found


def test_the_settings_in_the_manifests_are_settings() -> None:
    environment = manifest("Secret")["stringData"] | manifest("ConfigMap")["data"]
    fields = {name.removeprefix("HOLDFAST_").lower(): value for name, value in environment.items()}
    assert fields.keys() <= Settings.model_fields.keys()
    assert Settings.model_validate(fields).participants.keys() == {"seats", "wallet"}


def test_the_probes_are_routes_and_the_port_is_the_images() -> None:
    coordinator = container("Deployment")
    paths = {route.path for route in create_app(Settings()).routes if isinstance(route, APIRoute)}
    probes = {probe: coordinator[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert probes == {"readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    assert set(probes.values()) <= paths
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"EXPOSE {coordinator['ports'][0]['containerPort']}" in dockerfile
    assert f"USER {manifest('Deployment')['spec']['template']['spec']['securityContext']['runAsUser']}:" in dockerfile


def test_job_and_deployment_use_one_image_and_the_job_migrates() -> None:
    assert container("Job")["image"] == container("Deployment")["image"]
    assert container("Job")["args"] == ["python", "-m", "app", "migrate"]


def test_a_stop_leaves_time_to_finish_what_is_under_way() -> None:
    grace_s = manifest("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    stop_s = int(re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[0])
    assert min(grace_s, stop_s) > Settings().shutdown_timeout_s


def test_the_unit_starts_the_coordinator_on_its_state_directory() -> None:
    assert "ExecStart=/opt/holdfast/.venv/bin/python -m app serve\n" in UNIT
    assert "StateDirectory=holdfast\n" in UNIT
    assert "sqlite:////var/lib/holdfast/" in UNIT


@pytest.fixture
def administrator(postgres_server: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    url = postgres_server.url().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection
        connection.execute("DROP DATABASE IF EXISTS holdfast")
        connection.execute("DROP ROLE IF EXISTS holdfast")


def test_the_owner_of_the_database_needs_no_further_rights(
    postgres_server: PostgresServer, administrator: psycopg.Connection[Any]
) -> None:
    page = Page("docs/how-to/postgresql.md")
    creating, showing = (code.text for code in page.code("sql"))
    for statement in (*creating.split(";")[:-1], *showing.split(";")[:-1]):
        administrator.execute(statement)
    (url,) = set(re.findall(r"HOLDFAST_DATABASE_URL=(\S+)", page.text))
    url = url.replace(":5432/", f":{postgres_server.port}/")
    migrate(url)
    with psycopg.connect(url) as connection:
        owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert owners == [("holdfast",)]
