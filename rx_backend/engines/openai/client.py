"""An HTTP client for a server with OpenAI's API; every failure is a typed error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

from rx_backend.context import RequestContext
from rx_backend.errors import (
    BackendError,
    Cancelled,
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    error_of_status,
)
from rx_backend.extras import import_extra

if TYPE_CHECKING:
    import aiohttp

__all__ = ("OpenAIClient", "reported_error")

T = TypeVar("T")

_MAX_ERROR_BYTES: Final = 64 * 1024
_ANSWER_S: Final = 10.0
_EVENTS: Final = "text/event-stream"


class OpenAIClient:
    """
    Connections to one server, one per request, without a limit.

    Args:
        base_url: The server's address, with or without ``/v1``.
        headers: Sent with each request.
        connect_timeout_s: The timeout for connecting, in seconds.

    Attributes:
        url: The address without ``/v1``.
        failed: Set when the server could not be reached, or a connection to it was lost.

    Raises:
        ImportError: The package ``aiohttp`` is not installed.
        InvalidArgument: *base_url* is not a URL, or has a password.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], connect_timeout_s: float) -> None:
        self._aiohttp = import_extra(
            "aiohttp", "engine-openai", package="aiohttp", needed_by="OpenAIEngine"
        )
        if urlsplit(base_url).scheme not in {"http", "https"} or not urlsplit(base_url).netloc:
            raise InvalidArgument(
                f"base_url: expected a URL such as http://host:8000/v1, got {base_url!r}"
            )
        if "@" in urlsplit(base_url).netloc:
            # Errors show the URL, also to clients.
            raise InvalidArgument(
                "base_url: expected a URL without a password; pass a key by api_key_env"
            )
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.failed = asyncio.Event()
        self._headers = headers
        self._connect_timeout_s = connect_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Prepare for requests; nothing is connected yet."""
        http = self._aiohttp
        timeout = http.ClientTimeout(total=None, sock_connect=self._connect_timeout_s)
        # Reusing a connection that the server is closing fails; llama-server closes each one.
        connector = http.TCPConnector(limit=0, force_close=True)
        self._session = http.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers
        )

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, form: type[T]) -> T | None:
        """
        Return the JSON at *path* as a *form*; None if it has another form.

        Raises:
            InvalidArgument: The server requires a key, or another one.
            BackendError: The server could not be reached, or did not respond within 10 s.
        """
        try:
            timeout = self._aiohttp.ClientTimeout(total=_ANSWER_S)
            async with self._opened().get(self.url + path, timeout=timeout) as response:
                body = await response.read()
                if response.status in {401, 403}:
                    raise InvalidArgument(
                        f"{self.url} answers {response.status}: pass the key by api_key_env"
                    )
                return msgspec.json.decode(body, type=form) if response.status == 200 else None
        except msgspec.DecodeError:
            return None
        except (self._aiohttp.ClientError, OSError) as error:
            raise self._failure(error) from error

    async def answers(self) -> bool:
        """Return whether the server responds, with any status."""
        try:
            await self.get("/v1/models", msgspec.Raw)
        except InvalidArgument:
            return True
        except BackendError:
            return False
        return True

    @asynccontextmanager
    async def post(
        self, path: str, body: object, context: RequestContext, headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse | None]:
        """
        Send a request and yield its response, which a stop closes; None if already stopped.

        Raises:
            BackendError: The server could not be reached, or rejected the request.
        """
        response = await self._send_unless_stopped(path, body, context, headers)
        if response is None:
            yield None
            return
        stopping = context.stopped().subscribe(lambda _: response.close())
        try:
            yield response
        finally:
            stopping.dispose()
            response.close()

    async def read(self, response: aiohttp.ClientResponse, context: RequestContext) -> bytes:
        """
        Return the data that has arrived, empty at the end.

        Raises:
            Cancelled: A stop has closed the connection.
            EngineShutdown: All connections were closed.
            BackendError: The connection was lost.
        """
        try:
            data = await response.content.readany()
        except (self._aiohttp.ClientError, OSError, RuntimeError) as error:  # the last when closed
            if context.is_stopped:
                raise Cancelled("the request was stopped") from error
            raise self._failure(error) from error
        self._opened()
        return data

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise _closed()
        return self._session

    async def _send_unless_stopped(
        self, path: str, body: object, context: RequestContext, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse | None:
        if context.is_stopped:
            return None
        loop, waiting = asyncio.get_running_loop(), asyncio.timeout(None)
        try:
            async with waiting:
                stopping = context.stopped().subscribe(lambda _: waiting.reschedule(loop.time()))
                try:
                    return await self._send(path, body, headers)
                finally:
                    stopping.dispose()
        except TimeoutError:
            if not waiting.expired():
                raise
            return None

    async def _send(
        self, path: str, body: object, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        data = msgspec.json.encode(body)
        headers = {"content-type": "application/json", **headers}
        try:
            response = await self._opened().post(
                self.url + path, data=data, headers=headers, allow_redirects=False
            )
            # A redirect would turn it into a GET; a response that is not a stream reports a
            # failure.
            if response.status != 200 or response.content_type != _EVENTS:
                async with response:
                    told = await response.content.read(_MAX_ERROR_BYTES)
                    raise _refusal(response.status, told)
        except (self._aiohttp.ClientError, OSError) as error:
            raise self._failure(error) from error
        return response

    def _failure(self, error: Exception) -> BackendError:
        if self._session is None:
            return _closed()
        self.failed.set()
        text = f"{self.url}: {error or type(error).__name__}"
        if isinstance(error, TimeoutError):
            return ConnectionTimeout(text)
        if isinstance(error, self._aiohttp.ClientConnectorError):
            return CannotConnect(text)
        return Disconnected(text)


def _closed() -> EngineShutdown:
    return EngineShutdown("the engine is not started, or was cleaned up")


def _refusal(status: int, body: bytes) -> BackendError:
    try:
        told: Any = msgspec.json.decode(body)
        told = told.get("error", told)
    except (msgspec.DecodeError, AttributeError):
        told = body.decode(errors="replace")
        if status < 400 or not told:
            told = f"status {status} without a stream of events: {told}"
    return reported_error(told, status if status >= 400 else None)


def reported_error(told: Any, status: int | None = None) -> BackendError:
    """
    Return the typed error for a server's ``error``.

    Args:
        told: A text, or an object with ``message`` and perhaps a number as ``code``.
        status: The HTTP status, if it is an error status; it takes precedence over the code.

    >>> reported_error({"message": "too long", "code": 400})
    InvalidArgument('too long')
    >>> reported_error("out of memory")
    Unknown('out of memory')
    """
    if not isinstance(told, dict):
        return error_of_status(status, str(told))
    fields = cast("dict[str, Any]", told)
    return error_of_status(status or fields.get("code"), str(fields.get("message") or fields))
