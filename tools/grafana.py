"""Dashboards as the JSON that Grafana imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ("DATASOURCE", "Panel", "dashboard", "variable")

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
"""The data source that is selected at the top of the dashboard."""

_COLUMNS: Final = 24


@dataclass(frozen=True, kw_only=True)
class Panel:
    """
    One panel of a dashboard.

    Attributes:
        title: Its title.
        what: Its description.
        queries: PromQL, by the legend of its lines.
        unit: Grafana's name of the unit.
        kind: Grafana's name of the panel type.
        width: Its share of the 24 columns.
        options: Further field options.
    """

    title: str
    what: str
    queries: Mapping[str, str]
    unit: str
    kind: str = "timeseries"
    width: int = 8
    options: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def height(self) -> int:
        """The number of grid rows that it takes."""
        return 4 if self.kind == "stat" else 8

    def json(self) -> dict[str, Any]:
        """Return its JSON, without id and position."""
        options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}}
        if self.kind != "timeseries":
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}}
        return {
            "type": self.kind,
            "title": self.title,
            "description": self.what,
            "datasource": DATASOURCE,
            "fieldConfig": {
                "defaults": {"unit": self.unit, "min": 0, **self.options},
                "overrides": [],
            },
            "options": options,
            "targets": [
                {
                    "refId": "ABC"[place],
                    "datasource": DATASOURCE,
                    "expr": query,
                    "legendFormat": legend,
                    "range": True,
                }
                for place, (legend, query) in enumerate(self.queries.items())
            ],
        }


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a variable of a dashboard, with the results of *query* to select from."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard(
    uid: str, what: str, rows: Mapping[str, tuple[Panel, ...]], variables: list[dict[str, Any]]
) -> dict[str, Any]:
    """
    Return a dashboard's JSON.

    Args:
        uid: Its id and title.
        what: Its description.
        rows: Its panels, by the titles of their rows.
        variables: Its variables, beside the data source and filters by any label.
    """
    store = {"name": "datasource", "label": "Store", "type": "datasource", "query": "prometheus"}
    more = {"name": "more", "label": "More", "type": "adhoc", "datasource": DATASOURCE}
    return {
        "uid": uid,
        "title": uid,
        "description": what,
        "tags": ["llm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [store, *variables, more]},
        "annotations": {"list": []},
        "panels": list(_placed(rows)),
    }


def _placed(rows: Mapping[str, tuple[Panel, ...]]) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in rows.items():
        number += 1
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}
        left, top = 0, top + 1
        for panel in panels:
            if left + panel.width > _COLUMNS:
                left, top = 0, top + panel.height
            number += 1
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            yield {"id": number, "gridPos": place, **panel.json()}
            left += panel.width
        top += panels[-1].height
