"""The dashboard asks for metrics and labels that the stock server has."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import yaml

from builder.serving.server import StockServer
from client import RetrievalClient
from tests.builder.artifacts import export_vectors

MONITORING = Path(__file__).parents[1] / "docs" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
SCRAPED = {"instance", "job"}  # labels that Prometheus adds
WORDS = {"sum", "max", "by", "rate"}  # of PromQL, those that the dashboard uses


def expressions() -> list[tuple[str, str]]:
    """Each panel's PromQL with its legend."""
    found = [(t["expr"], t["legendFormat"]) for panel in DASHBOARD["panels"] for t in panel["targets"]]
    assert len(found) >= 15
    return found


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Metric names with the labels of their selectors."""
    found = []
    for name, labels in re.findall(r"\b(nv_\w+)(?:\{([^}]*)\})?", expression):
        found.append((name, dict(re.findall(r'(\w+)(?:=~|=)"([^"]*)"', labels))))
    return found


def test_the_dashboard_is_one() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("silvertriton", "SilverTriton")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    asked = " ".join(expression for expression, _ in expressions())
    used = set(re.findall(r"\$(?!__)\{?(\w+)", asked)) | {"datasource"}
    assert used == set(variables)


def test_panels_do_not_overlap() -> None:
    cells: list[tuple[int, int]] = []
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] <= at["x"] + at["w"] <= 24
        cells += [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(set(cells)) == len(cells)


def test_expressions_are_well_formed() -> None:
    for expression, _ in expressions():
        assert all(expression.count(one) == expression.count(other) for one, other in ("()", "{}", "[]")), expression
        bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", " ", expression)
        names = {word for word in re.findall(r"[A-Za-z_]\w*", bare) if not word.startswith("nv_")}
        assert names <= WORDS, expression


@pytest.mark.server
def test_every_metric_and_label_is_one_of_the_stock_server(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    repository = export_vectors(tmp_path, vectors).parent.parent
    with (
        StockServer(repository, log=tmp_path / "log") as server,
        RetrievalClient(server.url, timeout=20) as client,
    ):
        for vector in vectors[:20]:
            client.retrieve(query=vector, k=5)
        with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as response:
            text = response.read().decode()
    labels: dict[str, set[str]] = defaultdict(set)
    values: dict[str, set[str]] = defaultdict(set)
    for name, inside in re.findall(r"^(nv_\w+)(?:\{([^}]*)\})? \S+$", text, flags=re.MULTILINE):
        pairs = re.findall(r'(\w+)="([^"]*)"', inside)
        labels[name] |= {label for label, _ in pairs}
        for label, value in pairs:
            values[label].add(value)
    assert values["model"] == {"retrieval", "retrieval_rank"}
    asked: Any = expressions()
    asked += [(one["query"]["query"], "") for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    for expression, legend in asked:
        for name, selected in selectors(expression):
            assert name in labels, expression
            known = labels[name] | SCRAPED
            assert set(selected) <= known, expression
            grouped = re.findall(r"by \(([^)]*)\)", expression) + re.findall(r"label_values\(\w+, (\w+)\)", expression)
            shown = re.findall(r"\{\{(\w+)\}\}", legend)
            assert {label.strip() for group in grouped for label in group.split(",")} | set(shown) <= known, expression
            for quantile in selected.get("quantile", "").split("|"):
                assert not quantile or quantile in values["quantile"], expression
    summary = re.search(r'nv_inference_request_summary_us\{model="retrieval",.*quantile="0.5"\} (\S+)', text)
    assert summary is not None
    assert float(summary[1]) > 0


def test_prometheus_and_grafana_find_each_other() -> None:
    compose = yaml.safe_load((MONITORING.parents[1] / "docker-compose.yml").read_text())["services"]
    prometheus = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (discovery,) = prometheus["scrape_configs"][0]["dns_sd_configs"]
    assert set(discovery["names"]) == {name for name in compose if name.startswith("triton-")}
    assert discovery["port"] == 8002
    source = yaml.safe_load((MONITORING / "grafana-datasource.yml").read_text())["datasources"][0]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((MONITORING / "grafana-dashboards.yml").read_text())["providers"]
    mounts = [mount.split(":") for name in ("prometheus", "grafana") for mount in compose[name]["volumes"]]
    files = {target: MONITORING.parents[1] / source for source, target, *_ in mounts if source.startswith("./")}
    assert files == {
        "/etc/prometheus/prometheus.yml": MONITORING / "prometheus.yml",
        "/etc/grafana/provisioning/datasources/silvertriton.yml": MONITORING / "grafana-datasource.yml",
        "/etc/grafana/provisioning/dashboards/silvertriton.yml": MONITORING / "grafana-dashboards.yml",
        f"{provider['options']['path']}/silvertriton.json": MONITORING / "grafana-dashboard.json",
    }
