"""
The options of ``rx-backend serve``, ``rx-backend frontend`` and ``rx-backend dynamo``.

A flag overrides its environment variable, which overrides the default. `argparse` parses all three:
a variable's text becomes the option's default, and is parsed by the same type.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.switch import add_otlp_flag

__all__ = (
    "FrontendOptions",
    "ServeOptions",
    "add_dynamo_options",
    "add_frontend_options",
    "add_serve_options",
    "is_endpoint_part",
)

_Type: TypeAlias = Callable[[str], Any]

_TRUE, _FALSE = {"1", "true", "on", "yes"}, {"0", "false", "off", "no"}
_SCHEME = "dyn://"
_PIPELINE = "module:name of a pipeline, or of a function that returns one from a scope"


class FrontendOptions(argparse.Namespace):
    """The options of ``rx-backend frontend``; its help describes each."""

    discovery: str
    request_plane: str
    http_host: str
    http_port: int
    migration_limit: int
    otlp: str | None


class ServeOptions(FrontendOptions):
    """The options of ``rx-backend serve``; its help describes each."""

    engine: str
    mode: str
    namespace: str
    component: str | None
    endpoint: str
    pipeline: str | None
    engine_arg: Sequence[str] = ()
    own_args: Sequence[str] = ()
    model_path: str | None
    tokenizer: str | None
    served_model_name: str | None
    tool_call_parser: str | None
    reasoning_parser: str | None
    frontend: bool
    coalesce: bool
    grace_s: float
    drain_s: float
    given: frozenset[str] = frozenset()
    """The options that were set by flags."""

    @property
    def address(self) -> tuple[str, str | None, str]:
        """Namespace, component and endpoint."""
        if self.endpoint.startswith(_SCHEME):
            namespace, component, endpoint = self.endpoint.removeprefix(_SCHEME).split(".")
            return namespace, component, endpoint
        return self.namespace, self.component, self.endpoint

    def check(self) -> None:
        """
        Check the flags against each other.

        Raises:
            InvalidArgument: One contradicts another, or has no effect; the message names it.
        """
        idle = self.given & {"--http-host", "--http-port", "--migration-limit"}
        if idle and not self.frontend:
            raise InvalidArgument(f"{', '.join(sorted(idle))}: no effect without --frontend")
        parts = self.given & {"--namespace", "--component"}
        if parts and self.endpoint.startswith(_SCHEME):
            raise InvalidArgument(f"{', '.join(sorted(parts))}: contradicts a dyn:// endpoint")


def add_frontend_options(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add a frontend's options to a command's parser; *environ* is the environment."""
    add = _adder(parser, environ)
    discovery = _one_of("file", "etcd", "mem", "kubernetes")
    ways = "how workers find each other: file, etcd, mem or kubernetes"
    add("--discovery", "DYN_DISCOVERY_BACKEND", "file", discovery, ways)
    plane = _one_of("tcp", "nats")
    add("--request-plane", "DYN_REQUEST_PLANE", "tcp", plane, "how requests travel: tcp or nats")
    add("--http-host", "DYN_HTTP_HOST", "127.0.0.1", str, "the frontend's address")
    add("--http-port", "DYN_HTTP_PORT", 8000, _whole(1, 65535), "the frontend's port")
    moves = "how often a request may move to another worker when its own is lost"
    add("--migration-limit", "DYN_MIGRATION_LIMIT", 3, _whole(0, 2**32 - 1), moves)
    add_otlp_flag(parser)


def add_serve_options(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add a worker's options to a command's parser; *environ* is the environment."""
    add = _adder(parser, environ)
    engine = "class or function that makes the engine"
    parser.add_argument("engine", metavar="module:Engine", help=engine)
    mode = _one_of("agg", "prefill", "decode")
    add("--mode", "DYN_DISAGGREGATION_MODE", "agg", mode, "the role: agg, prefill or decode")
    part = _checked("a name without dots", _part)
    add("--namespace", "DYN_NAMESPACE", "dynamo", part, "first part of the worker's address")
    add("--component", "DYN_COMPONENT", None, part, "second part (backend, or prefill)")
    endpoint = _checked(f"a name or {_SCHEME}namespace.component.endpoint", _endpoint)
    add("--endpoint", "DYN_ENDPOINT", "generate", endpoint, f"third part, or {_SCHEME} with all")
    add("--pipeline", "RX_BACKEND_PIPELINE", None, str, _PIPELINE)
    model = "the engine's model; the tokenizer's folder if the engine has no model_path argument"
    add("--model-path", "DYN_MODEL_PATH", None, str, model)
    tokenizer = "folder or GGUF file with the tokenizer (the model's own, else a placeholder)"
    add("--tokenizer", "RX_BACKEND_TOKENIZER", None, str, tokenizer)
    served = "the name that clients use (the engine's)"
    add("--served-model-name", "DYN_SERVED_MODEL_NAME", None, str, served)
    for kind in ("tool-call", "reasoning"):
        variable = f"DYN_{kind.upper().replace('-', '_')}_PARSER"
        add(f"--{kind}-parser", variable, None, str, f"the runtime's {kind} parser, by name (none)")
    add("--coalesce", "RX_BACKEND_COALESCE", True, _switch, "send ready chunks in one frame")
    seconds, grace = _checked("seconds from 0", _seconds), "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"
    add("--grace-s", grace, 5.0, seconds, "seconds from leaving discovery to refusing requests")
    drain = "DYN_GRACEFUL_SHUTDOWN_TIMEOUT"
    add("--drain-s", drain, 30.0, seconds, "seconds for requests in flight to finish")
    add("--frontend", "RX_BACKEND_FRONTEND", False, _switch, "also serve the OpenAI API")
    add_frontend_options(parser, environ)


def add_dynamo_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``rx-backend dynamo``; arguments after the module are its own."""
    add = parser.add_argument
    add("--pipeline", metavar="module:name", help=_PIPELINE)
    mode = "the worker's role, as in its own arguments: agg, prefill or decode (agg)"
    add("--mode", choices=("agg", "prefill", "decode"), default="agg", metavar="MODE", help=mode)
    add_otlp_flag(parser)
    add("module", help="the worker's module, run as by python -m")
    add("arguments", nargs=argparse.REMAINDER, metavar="...", help="the worker's own arguments")


class _Variable(str):
    """The text of an environment variable, with the variable's name."""

    __slots__ = ("name",)
    name: str


class _Store(argparse.Action):
    """Stores a flag's value, and records that the flag was given."""

    def __call__(
        self, _: object, options: argparse.Namespace, value: Any, flag: Any = None
    ) -> None:
        setattr(options, self.dest, value)
        options.given = frozenset({flag, *getattr(options, "given", ())})


def _adder(
    parser: argparse.ArgumentParser, environ: Mapping[str, str]
) -> Callable[[str, str, object, _Type, str], None]:
    """Return a function that adds an option with its environment variable."""

    def add(flag: str, variable: str, default: object, type: _Type, help: str) -> None:
        shown = "" if default is None else f" ({default})".lower()
        text = help + shown + f" [{variable}]"
        if environ.get(variable):
            default = _Variable(environ[variable])
            default.name = variable
        if type is _switch:
            on_off = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=on_off, default=default, help=text).type = type
        else:
            parser.add_argument(flag, action=_Store, default=default, help=text, type=type)

    return add


def _checked(expected: str, convert: _Type) -> _Type:
    """Return a type for `argparse` whose error says what was expected, and the text's source."""

    def check(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            source = f" from {text.name}" if isinstance(text, _Variable) else ""
            message = f"expected {expected}, got {str(text)!r}{source}"
            raise argparse.ArgumentTypeError(message) from None

    return check


def _one_of(*names: str) -> _Type:
    return _checked(f"one of {', '.join(names)}", lambda text: names[names.index(text)])


def _whole(low: int, high: int) -> _Type:
    def convert(text: str) -> int:
        if not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return _checked(f"a whole number from {low} to {high}", convert)


def _seconds(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise ValueError(text)
    return float(text)


def _endpoint(text: str) -> str:
    parts = text.removeprefix(_SCHEME).split(".")
    if len(parts) != (3 if text.startswith(_SCHEME) else 1) or "://" in parts[0]:
        raise ValueError(text)
    for part in parts:
        _part(part)
    return text


def _part(text: str) -> str:
    if not is_endpoint_part(text):
        raise ValueError(text)
    return text


def is_endpoint_part(part: object) -> bool:
    """Whether *part* can be in an address; the runtime's metrics require a letter or digit in it."""
    if not isinstance(part, str) or "." in part or not part.isprintable():
        return False
    return re.search("[A-Za-z0-9_-]", part) is not None


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


_switch = _checked("true or false", _boolean)
