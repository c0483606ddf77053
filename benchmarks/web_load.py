"""
CPU, memory and lag of streams that are sent to several readers, beside a bare Starlette response.

So many answers of 20 tokens a second each are read by so many readers each, from server processes of
their own (``benchmarks.web_server``). The ways take turns, each with a new server, and the round with
the least CPU counts. This process reads all connections, checks that no reader misses a token, and
prints the figures. Run it with ``python -m benchmarks.web_load``, or for the full load in two server
processes with ``python -m benchmarks.web_load --answers 1000 --processes 2 --rounds 1``.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from benchmarks.web_server import FORMATS, KEEP_S, TOKENS_PER_S

WAYS = ("alone", "bare", "shared")
# How long all is left to settle before the measured time and behind it.
MARGIN_S = 1.0
# How often the connections are read: seldom, so that reading is cheap, and adds as much to the lag.
READ_EVERY_S = 0.05

_EVENT = re.compile(rb'id: (?:[\w-]+:)?(\d+)\n[^\n]*?"(?:text|content)":"([ \d]+)"')
_END = b"\n\n"


@dataclass
class Connection:
    """
    One reader, and what it has had.

    Attributes:
        due_s: When its first token is due, behind the opening of the gate.
        tokens, events: How many came.
        gaps: Events that don't go on where the one before ended, or whose id is another position.
        lag_s: The most that a token was late.
    """

    socket: socket.socket
    due_s: float
    tokens: int = 0
    events: int = 0
    gaps: int = 0
    lag_s: float = 0.0
    is_over: bool = False
    rest: bytes = b""

    def feed(self, data: bytes, since_open_s: float) -> None:
        """Take what came, and check that it goes on where it ended."""
        complete, end, rest = (self.rest + data).rpartition(_END)
        self.rest = rest
        if not end:
            return
        for found in _EVENT.finditer(complete):
            numbers = found[2].split()
            expected, self.tokens = self.tokens, self.tokens + len(numbers)
            self.events += 1
            is_next = int(numbers[0]) == expected and int(numbers[-1]) == self.tokens - 1
            if not is_next or int(found[1]) != self.tokens:
                self.gaps += 1
            self.lag_s = max(self.lag_s, since_open_s - self.due_s - expected / TOKENS_PER_S)


@dataclass
class Readers:
    """All readers of a round."""

    all: list[Connection] = field(default_factory=list["Connection"])
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    opened_at: float = 0.0

    def connect(self, port: int, path: str, due_s: float) -> None:
        """Add a reader."""
        connected = socket.create_connection(("127.0.0.1", port))
        connected.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        connected.setblocking(False)
        connection = Connection(connected, due_s)
        self.all.append(connection)
        self.selector.register(connected, selectors.EVENT_READ, connection)

    def read_until(self, time: float) -> None:
        """Read what comes until *time*, or until all have ended."""
        while monotonic() < time and self.selector.get_map():
            for key, _ in self.selector.select(0):
                connection: Connection = key.data
                data = connection.socket.recv(262_144)
                if data:
                    connection.feed(data, monotonic() - self.opened_at)
                else:
                    connection.is_over = True
                    self.selector.unregister(connection.socket)
                    connection.socket.close()
            sleep(READ_EVERY_S)

    @property
    def tokens(self) -> int:
        """How many tokens all readers have had."""
        return sum(connection.tokens for connection in self.all)

    @property
    def events(self) -> int:
        """In how many events."""
        return sum(connection.events for connection in self.all)


@dataclass
class Round:
    """One way's figures of one round; of all server processes together."""

    tokens: int
    events: int
    cpu_s: float
    cpu_of_core: float
    encoding_us: dict[str, float]
    rss: list[int]
    held_bytes: list[int]
    lag_s: float
    gaps: int
    incomplete: int

    @property
    def us(self) -> float:
        """µs of CPU for a token and reader."""
        return self.cpu_s / max(1, self.tokens) * 1e6


@contextmanager
def servers(way: str, options: argparse.Namespace) -> Generator[list[int]]:
    """Run the server processes; yield their ports."""
    command = [sys.executable, "-m", "benchmarks.web_server", way, f"--loop={options.loop}"]
    command += [f"--format={options.format}"]
    if options.profile:
        command += [f"--profile={options.profile}.{way}"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
        for _ in range(options.processes)
    ]
    try:
        yield [int(server.stdout.readline()) for server in running if server.stdout]
    finally:
        for server in running:
            server.terminate()
        for server in running:
            server.wait()


def ask(port: int, path: str) -> Any:
    """Return what a server says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return json.load(answer)


def total(ports: list[int], *, collect: bool = False) -> dict[str, float]:
    """Return the figures of all server processes together; the largest lag of a loop."""
    path = "/figures?collect" if collect else "/figures"
    every: list[dict[str, float]] = [ask(port, path) for port in ports]
    figures = {name: sum(each[name] for each in every) for name in every[0]}
    figures["loop_lag_s"] = max(each["loop_lag_s"] for each in every)
    return figures


def one_round(way: str, answers: int, options: argparse.Namespace) -> Round:
    """Have one way serve all readers, and return its figures."""
    tokens = int((options.seconds + 2 * MARGIN_S + 1) * TOKENS_PER_S)
    readers = Readers()
    with servers(way, options) as ports:
        encoding_us = ask(ports[0], "/encoding")
        before = total(ports, collect=True)
        for turn in range(1 if way == "alone" else options.readers):
            for number in range(answers):
                # The answers' tokens are due one after the other.
                offset_ms = number * 1000 // TOKENS_PER_S // answers
                path = f"/answers/{number}?offset_ms={offset_ms}&tokens={tokens}"
                readers.connect(ports[number % len(ports)], path, offset_ms / 1000)
            # What was begun can be joined.
            sleep(MARGIN_S * (turn == 0))
        total(ports, collect=True)
        readers.opened_at = min(ask(port, "/open") for port in ports)
        readers.read_until(readers.opened_at + MARGIN_S)
        start, began, had, events = total(ports), monotonic(), readers.tokens, readers.events
        readers.read_until(began + options.seconds)
        end, ended = total(ports), monotonic()
        had, events = readers.tokens - had, readers.events - events
        if way == "alone":
            # As many as it made, for one reader each.
            had = events = int((ended - began) * TOKENS_PER_S * answers)
        readers.read_until(monotonic() + 10 * options.seconds)
        kept = total(ports, collect=True)
        if way == "shared":
            sleep(KEEP_S + MARGIN_S)
        after = total(ports, collect=True)
    cpu_s = end["cpu_s"] - start["cpu_s"]
    return Round(
        tokens=had,
        events=events,
        cpu_s=cpu_s,
        cpu_of_core=cpu_s / (ended - began),
        encoding_us=encoding_us,
        rss=[int(each["rss"]) for each in (before, end, kept, after)],
        held_bytes=[int(each["held_bytes"]) for each in (before, end, kept, after)],
        lag_s=max(connection.lag_s for connection in readers.all),
        gaps=sum(connection.gaps for connection in readers.all),
        incomplete=0
        if way == "alone"
        else sum(
            connection.tokens != tokens or not connection.is_over for connection in readers.all
        ),
    )


def report(answers: int, best: dict[str, Round], options: argparse.Namespace) -> None:
    """Print the figures of one load."""
    load = answers * options.readers * TOKENS_PER_S
    print(
        f"\n{answers} answers x {options.readers} readers, {load:,} tokens/s to send;"
        f" {options.processes} processes, {options.loop}, {options.format}"
    )
    print(
        f"{'way':>8}{'CPU us':>9}{'cores':>7}{'tokens/s':>10}{'events':>8}{'lag s':>8}{'gaps':>6}"
        f"{'cut off':>9}   RSS MB: idle, running, kept, after; held bytes an answer"
    )
    for way, one in best.items():
        rss = ", ".join(f"{each / 1e6:.0f}" for each in one.rss)
        print(
            f"{way:>8}{one.us:>9.1f}{one.cpu_of_core:>7.2f}{one.tokens / options.seconds:>10,.0f}"
            f"{one.events / max(1, one.tokens):>8.2f}{one.lag_s:>8.2f}{one.gaps:>6}"
            f"{one.incomplete:>9}   {rss}; {one.held_bytes[1] / answers:,.0f}"
        )
    if best.keys() >= {"bare", "shared"}:
        bare, shared = best["bare"], best["shared"]
        added = shared.us - bare.us
        encoding = shared.encoding_us["shared"] - bare.encoding_us["bare"]
        print(
            f"  writing an event alone: {bare.encoding_us['bare']:.1f} us by hand,"
            f" {shared.encoding_us['shared']:.1f} us by the format\n"
            f"  shared / bare: {shared.us / bare.us:.2f}; added to a token and reader:"
            f" {added:.1f} us, beyond writing the event {added - encoding:.1f} us",
            flush=True,
        )


def main() -> None:
    """Measure the loads that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web_load")
    parser.add_argument("--answers", type=int, nargs="*", default=[50, 200])
    parser.add_argument("--readers", type=int, default=3, help="readers of each answer")
    parser.add_argument("--seconds", type=float, default=10.0, help="what is measured of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="server processes")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--format", choices=FORMATS, default="json")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--profile", help="write cProfile's figures to this name, by way")
    options = parser.parse_args()
    for answers in options.answers:
        rounds: dict[str, list[Round]] = {way: [] for way in options.ways}
        for _ in range(options.rounds):
            for way in options.ways:
                rounds[way].append(one_round(way, answers, options))
        best = {way: min(every, key=lambda one: one.us) for way, every in rounds.items()}
        report(answers, best, options)
        worst = [one for every in rounds.values() for one in every if one.gaps or one.incomplete]
        if worst:
            raise SystemExit(f"{len(worst)} rounds had gaps or readers that were cut off")


if __name__ == "__main__":
    main()
