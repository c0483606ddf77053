"""docs/observability.md, and for streams with readers docs/resumable.md, name all that can be seen."""

from __future__ import annotations

import re
from pathlib import Path

from operators import span_names
from rx_backend.errors import KINDS
from rx_backend.telemetry.switch import OTLP_VARIABLE
from tests.rx_backend.telemetry._load import Scraped

DOCS = Path(__file__).parents[3] / "docs"
DOCUMENT = DOCS / "observability.md"

# Values of attributes, each in a sentence of its own.
TEXTS = {"DROPPED_STATUS"}

VARIABLES = (OTLP_VARIABLE, "DYN_LOG", "DYN_LOGGING_JSONL", "DYN_LOGGING_CONSOLE_FORMAT")

SUFFIXES = re.compile(r"(_seconds|_bytes)?(_bucket|_sum|_count|_total)?$")


def named(text: str | None = None) -> set[str]:
    """Return what stands between backquotes, as a word or as several."""
    return set(re.findall(r"`([^`\n]+)`", text or DOCUMENT.read_text(encoding="utf-8")))


def test_every_span_attribute_is_documented() -> None:
    """Its attributes, its events, and the values of `error.type`."""
    names = {getattr(span_names, name) for name in span_names.__all__ if name not in TEXTS}
    assert names - named() == set()
    assert set(KINDS) - named() == set()


def test_every_metric_and_label_is_documented() -> None:
    """Those that a scrape shows, and no others."""
    scraped = Scraped()
    scraped.load()
    ours = {"gen_ai", "rx_backend", "error"}
    documents = [DOCUMENT, DOCS / "resumable.md"]
    sections = "".join(
        document.read_text(encoding="utf-8").partition("## Metrics")[2].partition("\n##")[0]
        for document in documents
    )
    known = {name.replace(".", "_") for name in named(sections) if name.split(".")[0] in ours}
    samples = scraped.samples()
    metrics = {SUFFIXES.sub("", name) for name in samples if name.split("_")[0] in {"gen", "rx"}}
    labels = {
        label
        for lines in samples.values()
        for sample in lines
        for label in sample.labels
        if label.startswith(tuple(ours))
    }
    assert metrics | labels <= known
    explained = set(re.findall(r"^\| `([^`]+)`", sections, re.MULTILINE))
    assert {name.replace(".", "_") for name in explained} == metrics


def test_every_environment_variable_is_documented() -> None:
    """Those that only this library reads in this way."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in VARIABLES if f"`{name}" not in text] == []
