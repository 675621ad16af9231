"""The files in deploy/, checked by the tools that read them, without a Docker engine or a network."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis

from tests.servers import answers, free_port, valkey_program
from workers.clients.storage import Store
from workers.contract.errors import StorageDenied
from workers.contract.settings import VARIABLES, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = Path(sysconfig.get_path("scripts"))

SECRETS = {"VALKEY_PASSWORD": "a-password", "S3_ACCESS_KEY": "an-access-key", "S3_SECRET_KEY": "a-secret-key"}
#: What boto3 reads by itself, beside our own settings.
CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
#: A drain takes well under this long.
SHORTEST_GRACE_S = 25


def compose_config(*options: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """compose.yaml as Docker Compose resolves it, with ``env`` as the only variables."""
    return subprocess.run(
        # --env-file: without it, a developer's own deploy/.env would be read.
        [SCRIPTS / "docker-compose", "--env-file", os.devnull, *options, "config", "--format", "json"],
        cwd=DEPLOY,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def services(*options: str) -> dict[str, Any]:
    """Service name -> its definition, with all variables resolved."""
    done = compose_config(*options, env=SECRETS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@pytest.fixture(scope="module")
def farm() -> dict[str, Any]:
    """All services, including those of the profile."""
    return services("--profile", "cpu")


@contextmanager
def running(command: list[str], *, cwd: Path, env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A server in its own session, killed with all its children at the end of the block."""
    with (cwd / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=cwd, env={"PATH": os.environ["PATH"], **env}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, 9)
        process.wait(10)


def seconds(duration: str) -> float:
    """Seconds of a duration as Compose writes it, such as 1m30s."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)([hms])", duration))


def test_a_plain_start_runs_queue_store_collector_and_gpu_worker() -> None:
    # Given compose.yaml and all secrets
    # When it is read without a profile
    names = set(services())
    # Then it holds all services of a GPU machine, and no CPU worker
    assert names == {"valkey", "seaweedfs", "bucket", "collector", "gpu-worker"}


def test_the_cpu_profile_adds_the_cpu_worker_and_nothing_else() -> None:
    # Given compose.yaml with and without the profile
    without, with_cpu = set(services()), set(services("--profile", "cpu"))
    # Then they differ by one service
    assert with_cpu - without == {"cpu-worker"}
    assert without <= with_cpu


@pytest.mark.parametrize("missing", sorted(SECRETS))
@pytest.mark.parametrize("how", ["unset", "empty"])
def test_a_missing_secret_is_refused_by_name(missing: str, how: str) -> None:
    # Given an environment with all secrets but one
    env = SECRETS | {missing: ""} if how == "empty" else {k: v for k, v in SECRETS.items() if k != missing}
    # When compose.yaml is read
    done = compose_config(env=env)
    # Then Compose refuses, and names this secret only
    assert done.returncode != 0
    assert {name for name in SECRETS if name in done.stderr} == {missing}


def test_the_example_env_file_names_exactly_the_secrets_and_holds_none() -> None:
    # Given the example file
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    # When its assignments are read
    pairs = [line.partition("=")[::2] for line in lines if line and not line.startswith("#")]
    # Then they are the required ones, with empty values
    assert dict(pairs) == dict.fromkeys(SECRETS, "")


def test_every_published_port_listens_on_this_machine_only(farm: dict[str, Any]) -> None:
    # Given every port of every service
    ports = [(name, port) for name, service in farm.items() for port in service.get("ports", [])]
    # Then there are some, and each is bound to 127.0.0.1
    assert {name for name, _ in ports} == {"valkey", "seaweedfs"}
    assert all(port["host_ip"] == "127.0.0.1" for _, port in ports)


def test_the_queue_writes_every_change_to_disk_and_never_evicts(farm: dict[str, Any], tmp_path: Path) -> None:
    # Given Valkey started by compose.yaml's own command, with the image's entry point and a free port
    command, port = [part.replace("$$", "$") for part in farm["valkey"]["command"]], free_port()
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    entry = tmp_path / "docker-entrypoint.sh"
    entry.write_text(f'#!/bin/sh\nshift\nexec {valkey_program()} "$@" --bind 127.0.0.1 --port {port}\n')
    entry.chmod(0o755)
    environ = {**farm["valkey"]["environment"], "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with running(command, cwd=tmp_path, env=environ) as process:
        # When its configuration is read
        client = redis.Redis(port=port, password=SECRETS["VALKEY_PASSWORD"], decode_responses=True)
        deadline = time.monotonic() + 20
        while True:
            try:
                found = {name: client.config_get(name)[name] for name in wanted}
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
        # Then each setting is in effect, the password is required, and no command line has it
        assert found == wanted
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"valkey-server" in line
        assert SECRETS["VALKEY_PASSWORD"].encode() not in line
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        client.close()


@pytest.mark.timeout(120)  # SeaweedFS takes 4 s to start on two idle cores
def test_the_store_serves_its_bucket_to_the_key_pair_alone(
    farm: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given SeaweedFS with the arguments and environment of compose.yaml, and later flags for free ports
    service, bucket = farm["seaweedfs"], farm["bucket"]
    (tmp_path / "data").mkdir()
    s3 = free_port(block=4)
    ours = [f"-dir={tmp_path}/data", "-s3.ip.bind=127.0.0.1", f"-s3.port={s3}"]
    for part, offset in (("master", 1), ("volume", 2), ("filer", 3)):
        ours.append(f"-{part}.port={s3 + offset}")
    weed = [str(SCRIPTS / "weed"), *service["command"], *ours]
    endpoint = f"http://127.0.0.1:{s3}"
    with running(weed, cwd=tmp_path, env=service["environment"]):
        # When its health check succeeds
        deadline = time.monotonic() + 90
        while True:
            try:
                answers(f"{endpoint}/healthz")
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        # And the bucket service has run twice, as after a restart
        env = bucket["environment"] | {"AWS_ENDPOINT_URL_S3": endpoint}
        for _ in range(2):
            make = [sys.executable, *bucket["entrypoint"][1:], *bucket["command"]]
            subprocess.run(make, cwd=ROOT, env={"PATH": os.environ["PATH"], **env}, check=True, timeout=90)
        # Then a worker with the environment of compose.yaml can write and read objects
        settings = Settings.from_environ(env)
        for name in CREDENTIALS:
            monkeypatch.setenv(name, env[name])
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it caches the credentials of an earlier test
        store = Store(settings, retry_s=10)
        store.put("job/tiles/features.0/0.png", b"png", "image/png")
        assert store.get("job/tiles/features.0/0.png") == b"png"
        # And a client with another key pair cannot
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        with pytest.raises(StorageDenied):
            Store(settings, retry_s=10).check()


def test_the_stores_parts_without_a_password_listen_inside_its_container_only(farm: dict[str, Any]) -> None:
    # Given SeaweedFS's arguments
    arguments = farm["seaweedfs"]["command"]
    # Then master, volume and filer, which need no password, are bound to loopback; the S3 gateway is not
    assert "-ip.bind=127.0.0.1" in arguments
    assert [word for word in arguments if "0.0.0.0" in word] == ["-s3.ip.bind=0.0.0.0"]


@pytest.mark.parametrize("name", ["gpu-worker", "cpu-worker", "collector"])
def test_a_stopped_service_has_time_to_drain_and_a_failed_one_is_restarted(farm: dict[str, Any], name: str) -> None:
    # Given a service of ours
    service = farm[name]
    # Then SIGTERM (the default) is followed by SIGKILL only after the time of a drain
    assert "stop_signal" not in service
    assert seconds(service["stop_grace_period"]) >= SHORTEST_GRACE_S
    # And Compose restarts it when it ends
    assert service["restart"] == "unless-stopped"


def test_every_variable_is_a_setting_or_a_credential(farm: dict[str, Any]) -> None:
    # Given the environment of every service
    names = {name for service in farm.values() for name in service.get("environment", {})}
    # Then ours are settings or credentials
    assert {name for name in names if name.startswith(("FILTERFARM_", "AWS_"))} <= {*VARIABLES.values(), *CREDENTIALS}


@pytest.mark.parametrize("name", ["gpu-worker", "cpu-worker", "collector", "bucket"])
def test_the_environment_of_our_services_makes_valid_settings(farm: dict[str, Any], name: str) -> None:
    # Given a service's environment, and hexadecimal secrets as .env.example asks for
    # When a process in the container reads it
    settings = Settings.from_environ(farm[name]["environment"])
    # Then it names the two other services
    assert settings.public_broker_url.endswith("@valkey:6379/0")
    assert (settings.bucket, settings.endpoint_url) == ("filterfarm", "http://seaweedfs:8333")


def test_every_command_is_one_that_exists(farm: dict[str, Any]) -> None:
    # Given the command line
    from producer.cli.main import cli

    # When compose.yaml's commands and all of README.md's are collected
    text = (DEPLOY / "README.md").read_text()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    ours = [
        service["command"]
        for service in farm.values()
        if service["image"] == "filterfarm" and not service["entrypoint"]
    ]
    ours += [
        shlex.split(rest, comments=True) for rest in re.findall(r"(?:^|  )filterfarm (\w.*)$", shell, re.MULTILINE)
    ]
    ours += [
        shlex.split(rest, comments=True) for rest in re.findall(r"run --rm collector (\w.*)$", shell, re.MULTILINE)
    ]
    # Then each is a command that exists, with options that exist
    assert {words[0] for words in ours} >= {"worker", "collector", "submit", "watch", "fetch", "doctor", "status"}
    for words in ours:
        options = {option for parameter in cli.commands[words[0]].params for option in parameter.opts}
        assert {word for word in words[1:] if word.startswith("--")} <= options, words


def test_every_service_named_in_the_readme_exists(farm: dict[str, Any]) -> None:
    # Given README.md's Compose commands that name services
    text = (DEPLOY / "README.md").read_text()
    # When the names are taken from them
    named = re.findall(r"docker compose (?:run --rm|logs -f|up -d) ([a-z-]+(?: cpu-worker)?)", text)
    # Then each is a service
    assert named
    assert {word for names in named for word in names.split()} <= set(farm)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    # Given the Dockerfile and no configuration file
    command = [str(SCRIPTS / "hadolint"), "--no-color", "--config", os.devnull, str(DEPLOY / "Dockerfile")]
    # When it is linted
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    # Then there is no finding, and no rule is disabled
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in (DEPLOY / "Dockerfile").read_text()


def test_the_image_runs_filterfarm_without_a_shell_and_not_as_root() -> None:
    # Given the Dockerfile's instructions, of which the last of each kind applies
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    last = {word: rest for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()}
    # Then entry point and command are in exec form, and the user is not root
    assert json.loads(last["ENTRYPOINT"]) == ["filterfarm"]
    assert isinstance(json.loads(last["CMD"]), list)
    assert int(last["USER"]) >= 1000


def test_the_image_installs_the_dependencies_that_the_project_declares() -> None:
    # Given the project, and the Dockerfile's line that lists its dependencies for the early layer
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    line = re.search(r'python -c "(import tomllib;.*)" \\$', (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert line is not None
    # When it runs
    code = line[1].replace("/tmp/pyproject.toml", str(ROOT / "pyproject.toml"))
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # Then it prints all of them, one a line
    assert printed.splitlines() == project["dependencies"]


def test_the_build_context_holds_the_files_of_the_package_only() -> None:
    # Given .dockerignore
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    # Then everything is excluded except the named paths
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    # And these include what pyproject.toml names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "producer", "workers"} <= allowed
    readme = project.get("readme")
    assert readme is None or (isinstance(readme, str) and readme in allowed)
