"""docker-compose.yml agrees with what an export writes and with the stock server's own options."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from builder.serving.distribution import find_distribution
from builder.serving.server import _choose_ports
from tests.builder.artifacts import export_vectors

ROOT = Path(__file__).parent.parent
SERVICE_KEYS = {
    "image", "command", "volumes", "ports", "healthcheck", "stop_grace_period", "restart", "profiles", "deploy",
}  # fmt: skip


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
        return environment.get(match["name"]) or match["default"]

    return re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text).replace("$$", "$")


def script(service: dict[str, Any], **environment: str) -> list[str]:
    """The words of the shell command that starts the server."""
    shell, flag, text = service["command"]
    assert (shell, flag) == ("sh", "-c")
    return shlex.split(interpolate(text, **environment))


def test_the_file_is_of_the_specifications_form(compose: dict[str, Any]) -> None:
    assert set(compose) == {"x-server", "services"}  # x- is for extensions
    assert set(compose["services"]) == {"triton-cpu", "triton-gpu"}
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert service["profiles"] == [name.removeprefix("triton-")]
        assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", interpolate(service["image"]))
        assert all(isinstance(port, str) for port in service["ports"])
        assert service["restart"] in ("no", "always", "on-failure", "unless-stopped")
    device = compose["services"]["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in compose["services"]["triton-cpu"]


def test_ports_are_those_the_command_line_expects_and_stay_on_this_machine(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        ports = [interpolate(port) for port in service["ports"]]
        assert ports == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001", "127.0.0.1:8002:8002"]
        assert [interpolate(port, GRPC_PORT="9001") for port in service["ports"]][1] == "127.0.0.1:9001:8001"


def test_health_is_asked_where_the_server_answers(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        check = service["healthcheck"]
        assert check["test"][:2] == ["CMD", "curl"]
        assert check["test"][-1] == "http://localhost:8000/v2/health/ready"
        assert all(re.fullmatch(r"\d+s", check[key]) for key in ("interval", "timeout", "start_period"))
        assert check["retries"] == 3


def test_what_is_preloaded_is_what_an_export_writes(compose: dict[str, Any], version: Path) -> None:
    repository = version.parent.parent
    for service in compose["services"].values():
        words = script(service)
        assert words[:2] == ["exec", "env"]
        variables = dict(word.split("=", 1) for word in words[2 : words.index("tritonserver")])
        assert set(variables) == {"LD_PRELOAD", "LD_LIBRARY_PATH"}
        assert (repository / Path(variables["LD_PRELOAD"]).relative_to("/models")).is_file()
        assert variables["LD_LIBRARY_PATH"] == "/opt/tritonserver/backends/pytorch:$LD_LIBRARY_PATH"
        assert service["volumes"] == ["./model_repository:/models:ro"]
        assert words[words.index("tritonserver") + 1 :] == [
            "--model-repository=/models",
            "--model-config-name=pytorch",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--load-model=*",
        ]
    words = script(compose["services"]["triton-cpu"], MODEL="films", VERSION="7")
    assert "LD_PRELOAD=/models/films/7/libsilvertriton_ops.so" in words


@pytest.mark.server
def test_the_stock_server_takes_these_options_and_reads_the_pytorch_configuration(
    compose: dict[str, Any], version: Path, tmp_path: Path
) -> None:
    """The embedded server has no PyTorch backend, and must fail for that reason alone: config.pbtxt names Python."""
    repository = version.parent.parent
    assert 'backend: "python"' in (repository / "retrieval" / "config.pbtxt").read_text()
    assert 'backend: "pytorch"' in (repository / "retrieval" / "configs" / "pytorch.pbtxt").read_text()
    words = script(compose["services"]["triton-cpu"])
    options = [word.replace("=/models", f"={repository}") for word in words[words.index("tritonserver") + 1 :]]
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
