"""docker-compose.yml agrees with what an export writes and with the stock server's own options."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from builder.export.config import CONFIGURATIONS
from builder.serving.distribution import find_distribution
from builder.serving.options import METRICS_OPTIONS, restricting_options, tracing_options
from builder.serving.server import _choose_ports
from tests.builder.artifacts import export_vectors

ROOT = Path(__file__).parent.parent
SERVERS = {"triton-cpu": "pytorch", "triton-gpu": "pytorch-gpu"}  # and the configurations that they ask for
SERVICE_KEYS = {
    "image", "command", "environment", "volumes", "tmpfs", "shm_size", "ulimits", "ports", "healthcheck",
    "stop_grace_period", "restart", "read_only", "security_opt", "cap_drop", "profiles", "deploy",
}  # fmt: skip
KEY = "k" * 20


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_vectors(tmp_path_factory.mktemp("exported"), np.eye(4, dtype=np.float32))


def interpolate(text: str, **environment: str) -> str:
    """${NAME:-default} and $$, as the Compose specification has them."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match["name"]) or match["default"]

    return re.sub(r"\$\$|\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text)


def started(service: dict[str, Any], folder: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """The options that the service's shell command gives tritonserver, and its variables, as the shell makes them."""
    shell, flag, text = service["command"]
    assert (shell, flag) == ("sh", "-c")
    recorder = folder / "bin" / "tritonserver"
    recorder.parent.mkdir(exist_ok=True)
    recorder.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\necho ---\nenv\n')
    recorder.chmod(0o755)
    inside = {name: interpolate(value, **environment) for name, value in service["environment"].items()}
    result = subprocess.run(
        [shell, flag, interpolate(text, **environment)], capture_output=True, text=True, timeout=30, check=True,
        env={"PATH": f"{recorder.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": "/before", **inside},
    )  # fmt: skip
    options, _, variables = result.stdout.partition("---\n")
    return options.splitlines(), dict(line.split("=", 1) for line in variables.splitlines())


def test_the_file_is_of_the_specifications_form(compose: dict[str, Any]) -> None:
    assert set(compose) == {"x-hardened", "x-server", "services", "volumes"}  # x- is for extensions
    assert set(compose["services"]) == {*SERVERS, "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert service["profiles"] == [name.removeprefix("triton-") if name in SERVERS else "monitoring"]
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", interpolate(port)) for port in service["ports"])
        assert (service["restart"], service["read_only"], service["cap_drop"]) == ("unless-stopped", True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        for mount in service["volumes"]:
            source, _, *mode = mount.split(":")
            assert mode == ["ro"] if source.startswith("./") else source in compose["volumes"]
    for name in SERVERS:
        image = interpolate(compose["services"][name]["image"])
        assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", image)
    assert compose["services"]["triton-gpu"]["command"] == compose["services"]["triton-cpu"]["command"]
    device = compose["services"]["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in compose["services"]["triton-cpu"]


def test_ports_are_those_the_command_line_expects_and_stay_on_this_machine(compose: dict[str, Any]) -> None:
    for service in map(compose["services"].get, SERVERS):
        ports = [interpolate(port) for port in service["ports"]]
        assert ports == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001", "127.0.0.1:8002:8002"]
        assert [interpolate(port, GRPC_PORT="9001") for port in service["ports"]][1] == "127.0.0.1:9001:8001"


def test_health_is_asked_where_the_server_answers(compose: dict[str, Any]) -> None:
    for service in map(compose["services"].get, SERVERS):
        check = service["healthcheck"]
        assert check["test"][:2] == ["CMD", "curl"]
        assert check["test"][-1] == "http://localhost:8000/v2/health/ready"
        assert all(re.fullmatch(r"\d+s", check[key]) for key in ("interval", "timeout", "start_period"))
        assert check["retries"] == 3


def test_what_is_preloaded_is_what_an_export_writes(compose: dict[str, Any], version: Path, tmp_path: Path) -> None:
    repository = version.parent.parent
    for service in map(compose["services"].get, SERVERS):
        _, variables = started(service, tmp_path)
        assert (repository / Path(variables["LD_PRELOAD"]).relative_to("/models")).is_file()
        assert variables["LD_LIBRARY_PATH"] == "/opt/tritonserver/backends/pytorch:/before"
        assert service["volumes"] == ["./model_repository:/models:ro"]
    _, variables = started(compose["services"]["triton-cpu"], tmp_path, MODEL="films", VERSION="7")
    assert variables["LD_PRELOAD"] == "/models/films/7/libsilvertriton_ops.so"


def test_options_are_those_of_builder_serve(compose: dict[str, Any], tmp_path: Path) -> None:
    for name, configuration in SERVERS.items():
        assert configuration in CONFIGURATIONS
        service = compose["services"][name]
        options, _ = started(service, tmp_path, SILVERTRITON_ADMIN_KEY=KEY)
        plain = [
            "--model-repository=/models", f"--model-config-name={configuration}", "--disable-auto-complete-config",
            "--model-control-mode=explicit", "--load-model=*", *restricting_options(KEY), *METRICS_OPTIONS,
        ]  # fmt: skip
        assert options == plain
        options, _ = started(service, tmp_path, SILVERTRITON_ADMIN_KEY=KEY, BACKEND="tensorrt")
        assert options == ["--model-config-name=tensorrt" if "config-name" in word else word for word in plain]
        url = "http://collector:4318/v1/traces"
        options, _ = started(service, tmp_path, SILVERTRITON_ADMIN_KEY=KEY, TRACE_URL=url, TRACE_RATE="7")
        assert options == [*plain, *tracing_options(url, 7)]


def test_without_a_key_one_is_drawn_that_nobody_knows(compose: dict[str, Any], tmp_path: Path) -> None:
    drawn = set()
    for _ in range(3):
        options, _ = started(compose["services"]["triton-cpu"], tmp_path)
        keys = {option.split("=")[-1] for option in options if "-restricted-" in option}
        assert len(keys) == 1
        drawn |= keys
    assert len(drawn) == 3
    assert all(re.fullmatch(r"[0-9a-f]{48}", key) for key in drawn)


@pytest.mark.server
def test_the_stock_server_knows_every_option(compose: dict[str, Any], tmp_path: Path) -> None:
    distribution = find_distribution()
    found = subprocess.run(
        [str(distribution.binary), "--help"],
        env=distribution.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    known = set(re.findall(r"^  (--[a-z-]+)", found.stdout + found.stderr, flags=re.MULTILINE))
    assert "--grpc-port" in known
    options, _ = started(compose["services"]["triton-cpu"], tmp_path, TRACE_URL="http://collector:4318/v1/traces")
    assert {option.split("=")[0] for option in options} <= known


@pytest.mark.server
def test_the_stock_server_takes_these_options_and_reads_the_pytorch_configuration(
    compose: dict[str, Any], version: Path, tmp_path: Path
) -> None:
    """The embedded server has no PyTorch backend, and must fail for that reason alone: config.pbtxt names Python."""
    repository = version.parent.parent
    assert 'backend: "python"' in (repository / "retrieval" / "config.pbtxt").read_text()
    assert 'backend: "pytorch"' in (repository / "retrieval" / "configs" / "pytorch.pbtxt").read_text()
    options, _ = started(compose["services"]["triton-cpu"], tmp_path, TRACE_URL="http://127.0.0.1:9/v1/traces")
    options = [option.replace("=/models", f"={repository}") for option in options]
    distribution = find_distribution()
    grpc, http, metrics = _choose_ports("127.0.0.1", (0, 0, 0))
    backends = distribution.write_backend_directory(tmp_path / "backends")
    result = subprocess.run(
        [
            str(distribution.binary), *options, f"--backend-directory={backends}", f"--grpc-port={grpc}",
            f"--http-port={http}", f"--metrics-port={metrics}", "--allow-gpu-metrics=false",
        ],
        env=distribution.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    log = result.stdout + result.stderr
    assert result.returncode == 1
    assert re.search(r"unable to find backend library for backend 'pytorch'", log), log
    assert "failed to load all models" in log
