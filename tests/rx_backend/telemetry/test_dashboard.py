"""The dashboard asks for what is there: names and labels of a real scrape, and a real Prometheus."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from prometheus_client import start_http_server

from tests.rx_backend.telemetry._load import Scraped
from tests.rx_backend.worker._processes import START_S, STEP_S, Served, free_port
from tools.cluster import find
from tools.dashboard import PATH

VARIABLES = {"$model": ".*", "$mode": ".*", "$__rate_interval": "1m"}

# A metric, what its labels must be, and what no metric is followed by.
SELECTOR = re.compile(r"\b((?:gen_ai|rx_backend)_\w+)(?:\{(.*?)\})?[\[)]")
GROUPING = re.compile(r" by \((\w+(?:, \w+)*)\)")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"(.*?)"')


def panels() -> list[dict[str, Any]]:
    """Return the panels with queries."""
    panels: list[dict[str, Any]] = json.loads(PATH.read_text())["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query with its panel's title, as Grafana would ask it."""
    for panel in panels():
        for target in panel["targets"]:
            query: str = target["expr"]
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            yield panel["title"], query


def test_queries_use_scraped_names() -> None:
    """Each metric is there, with the labels and values that are asked for; none is left out."""
    scraped = Scraped()
    scraped.load()
    samples = scraped.samples()
    asked: set[str] = set()
    for title, query in queries():
        groups = [name for names in GROUPING.findall(query) for name in names.split(", ")]
        selectors = SELECTOR.findall(GROUPING.sub("", query))
        assert selectors, title
        for metric, labels in selectors:
            asked.add(metric)
            assert metric in samples, (title, metric)
            for label in [name for name, _, _ in MATCHER.findall(labels)] + groups:
                assert any(label in sample.labels for sample in samples[metric]), (title, label)
            exact = {name: value for name, how, value in MATCHER.findall(labels) if how == "="}
            fits = [sample for sample in samples[metric] if exact.items() <= sample.labels.items()]
            assert fits, (title, labels)
    endings = ("_bucket", "_total", "_active", "_streams", "_readers", "_waiting", "_held_bytes")
    assert {name for name in samples if name.endswith(endings)} == asked


def test_the_dashboard_can_be_imported() -> None:
    """Panels have ids and places of their own, say what they are for, and use the store picked."""
    dashboard = json.loads(PATH.read_text())
    assert dashboard["uid"] == dashboard["title"] == "rx-backend"
    store = dashboard["templating"]["list"][0]
    assert (store["name"], store["type"], store["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert columns.stop <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


class Prometheus:
    """A Prometheus that scrapes one port of this machine."""

    def __init__(self, process: Served) -> None:
        self._process = process

    def ask(self, query: str) -> list[float]:
        """Return the values of a query's lines, now."""
        url = f"http://127.0.0.1:{self._process.port}/api/v1/query?{urlencode({'query': query})}"
        with urlopen(url, timeout=STEP_S) as answer:
            result = json.load(answer)["data"]["result"]
        return [float(line["value"][1]) for line in result]

    def until(self, query: str, holds: Callable[[list[float]], bool]) -> None:
        """Wait until something holds of the values of a query's lines."""
        ends = time.monotonic() + START_S
        while not holds(seen := self.ask(query)):
            assert time.monotonic() < ends, (query, seen, "".join(self._process.seen))
            time.sleep(0.05)


@contextmanager
def scraping(scraped: Scraped, folder: Path) -> Generator[Prometheus]:
    """Run a Prometheus that scrapes often."""
    server, thread = start_http_server(0, "127.0.0.1", scraped.registry)
    with ExitStack() as stack:
        for end in (thread.join, server.server_close, server.shutdown):
            stack.callback(end)
        job = {
            "job_name": "rx-backend",
            "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}],
        }
        told = {"global": {"scrape_interval": "100ms"}, "scrape_configs": [job]}
        # YAML is a superset of JSON.
        (folder / "prometheus.yml").write_text(json.dumps(told))
        port = free_port()
        process = subprocess.Popen(
            [
                find("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        served = Served(process, port)
        stack.callback(served.ended)
        stack.callback(served.signal, signal.SIGKILL)
        served.line("ready to receive web requests", START_S)
        yield Prometheus(served)


@pytest.mark.cluster
@pytest.mark.timeout(90)
def test_prometheus_answers_every_query(tmp_path: Path) -> None:
    """A real one, that scraped us before and after some load, has a number for each line."""
    scraped = Scraped()
    scraped.load()
    ended = "sum(rx_backend_requests_total)"
    once = float(sum(sample.value for sample in scraped.samples()["rx_backend_requests_total"]))
    with scraping(scraped, tmp_path) as prometheus:
        prometheus.until(ended, lambda seen: seen == [once])
        scraped.load()
        prometheus.until(ended, lambda seen: seen == [2 * once])
        for _title, query in queries():
            # A scrape that comes late leaves a moment without lines.
            prometheus.until(query, lambda seen: bool(seen) and not any(map(math.isnan, seen)))
