"""NATS that asks who connects, and that encrypts: what it is given, and how a refusal is told."""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from rx_backend.errors import BackendError, CannotConnect, InvalidArgument
from tests.engines import real_time
from tests.leaks import LeakWatch
from tests.logs import capture_logs
from tests.rx_backend.resumable.jetstream._answers import (
    CountingEngine,
    expected,
    leaves_sockets,
    process,
    request,
    tokens,
    until,
)
from tests.rx_backend.resumable.jetstream._certificates import Authority
from tests.rx_backend.resumable.jetstream._keys import Key, credentials, operator_config
from tests.rx_backend.resumable.jetstream._nats import NatsServer, nats_server

pytestmark = pytest.mark.cluster

# So asyncio warns of the form in which the client turns to TLS.
TLS_CLOSED = "eof_received"

USER = {"authorization": "{ user: ann, password: s3cret }"}
TOKEN = {"authorization": "{ token: s3cret }"}


async def serves(url: str, **connect: Any) -> None:
    """An answer is begun by one process and read in two."""
    async with (
        process(url, CountingEngine(), connect=connect) as here,
        process(url, CountingEngine(), connect=connect) as there,
    ):
        async with await here.start(request(20)) as reader:
            assert tokens([item async for item in reader]) == expected(20)
        async with await there.resume(reader.stream_id, 5) as reader:
            assert tokens([item async for item in reader]) == expected(20, 5)


async def refusal(url: str, **connect: Any) -> BackendError:
    with pytest.raises(BackendError) as raised:
        async with asyncio.timeout(10):
            await serves(url, **connect)
    return raised.value


def with_user(server: NatsServer, user: str) -> str:
    return server.url.replace("://", f"://{user}@")


@real_time
async def test_users_passwords_and_tokens_go_into_the_url_or_the_options(tmp_path: Path) -> None:
    """Either way the server lets them in."""
    with nats_server(tmp_path, USER) as server:
        await serves(with_user(server, "ann:s3cret"))
        await serves(server.url, user="ann", password="s3cret")
        server.kill()
        server.start(TOKEN)
        await serves(with_user(server, "s3cret"))
        await serves(server.url, token="s3cret")


@leaves_sockets
@pytest.mark.parametrize(
    "connect",
    [
        {"user": "ann", "password": "wr0ng"},
        {"token": "wr0ng"},
        {},
    ],
)
@real_time
async def test_a_refused_login_is_reported(tmp_path: Path, connect: dict[str, str]) -> None:
    """At once, with the server's address, and without the password."""
    with nats_server(tmp_path, USER) as server:
        error = await refusal(server.url, **connect)
        assert isinstance(error, CannotConnect)
        assert error.message == (
            f"NATS at {server.url}: authorization failed: "
            "the server rejects the user, password, token or key"
        )


@leaves_sockets
@real_time
async def test_credentials_in_a_url_are_never_shown(tmp_path: Path) -> None:
    """Neither by an error nor by the log, whatever happens to the connection."""
    with nats_server(tmp_path, USER) as server:
        url = with_user(server, "ann:s3cret")
        told = [str(await refusal(with_user(server, "ann:wr0ng-s3cret")))]
        with capture_logs() as logs:
            async with process(url, CountingEngine(0.01), timeout_s=0.5) as here:
                server.kill()
                await until(lambda: any("lost" in line["event"] for line in logs))
                server.start(USER)
                await until(lambda: any("restored" in line["event"] for line in logs))
                async with await here.start(request(5)) as reader:
                    assert tokens([item async for item in reader]) == expected(5)
            server.kill()
            told.append(str(await refusal(url)))
        told += map(str, logs)
        assert all(server.url in text for text in told[:2])
        assert not any("s3cret" in text for text in told)


@real_time
async def test_keys_may_be_files_or_text(tmp_path: Path) -> None:
    """`nkeys_seed` and `nkeys_seed_str`, for a server that knows the public key."""
    user = Key.user()
    config = {"authorization": f"{{ users: [{{ nkey: {user.public} }}] }}"}
    with nats_server(tmp_path, config) as server:
        file = tmp_path / "user.nk"
        file.write_text(user.seed + "\n")
        await serves(server.url, nkeys_seed=str(file))
        await serves(server.url, nkeys_seed_str=user.seed)
        error = await refusal(server.url, nkeys_seed_str=Key.user().seed)
        assert isinstance(error, CannotConnect)
        assert "authorization failed" in error.message


@real_time
async def test_a_credentials_file_logs_a_user_in(tmp_path: Path) -> None:
    """For a server that trusts what an operator has signed; another account's is refused."""
    account = Key.account()
    with nats_server(tmp_path, operator_config(Key.operator(), account)) as server:
        file = tmp_path / "user.creds"
        file.write_text(credentials(account, Key.user()))
        await serves(server.url, user_credentials=str(file))
        file.write_text(credentials(Key.account(), Key.user()))
        error = await refusal(server.url, user_credentials=str(file))
        assert isinstance(error, CannotConnect)
        assert "authorization failed" in error.message


@pytest.mark.parametrize(
    ("connect", "message"),
    [
        ({"user_credentials": "no.creds"}, "connect: user_credentials: .*No such file.*no.creds"),
        (
            {"user_credentials": __file__},
            "connect: user_credentials: expected a file with a user",
        ),
        ({"user_credentials": (__file__, "no.nk")}, "connect: user_credentials: .*no.nk"),
        ({"nkeys_seed": "no.nk"}, "connect: nkeys_seed: .*no.nk"),
        ({"nkeys_seed_str": "SUA"}, "connect: .*invalid seed"),
        ({"pasword": "x"}, "connect: .*pasword"),
    ],
)
@real_time
async def test_invalid_client_options_are_named(
    nats: NatsServer, connect: dict[str, Any], message: str
) -> None:
    """Before anything is connected; a wrong file does not hang."""
    error = await refusal(nats.url, **connect)
    assert isinstance(error, InvalidArgument)
    assert re.search(message, error.message)


def test_a_missing_package_for_keys_is_reported(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install is in the message."""
    monkeypatch.setitem(sys.modules, "nkeys", None)
    error = asyncio.run(refusal(nats.url, nkeys_seed_str="SUA"))
    assert isinstance(error, InvalidArgument)
    assert "nkeys_seed_str needs the package nkeys: pip install nkeys" in error.message


def test_an_invalid_url_is_reported() -> None:
    """As a wrong argument."""
    error = asyncio.run(refusal("nats://127.0.0.1:port"))
    assert isinstance(error, InvalidArgument)
    assert error.message.startswith("servers: ")


@real_time
async def test_tls_with_a_private_authority(tmp_path: Path, leaks: LeakWatch) -> None:
    """By the context in the options; the connection is made again after a restart."""
    leaks.allow(TLS_CLOSED)
    authority = Authority(tmp_path, "authority")
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    config = tls_config(authority)
    with nats_server(tmp_path, config) as server:
        await serves(server.url, tls=trusting)
        async with process(server.url, CountingEngine(0.01), connect={"tls": trusting}) as here:
            reader = await here.start(request(100))
            items = [await anext(reader) for _ in range(5)]
            server.kill()
            server.start(config)
            items += [item async for item in reader]
            assert tokens(items) == expected(100)


@leaves_sockets
@real_time
async def test_an_invalid_certificate_is_reported(tmp_path: Path, leaks: LeakWatch) -> None:
    """An unknown authority, another host's name, and a client without the certificate it needs."""
    leaks.allow(TLS_CLOSED)
    authority, stranger = Authority(tmp_path, "authority"), Authority(tmp_path, "stranger")
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    with nats_server(tmp_path, tls_config(authority)) as server:
        other = ssl.create_default_context(cafile=str(stranger.certificate))
        for connect in ({}, {"tls": other}):
            error = await refusal(server.url, **connect)
            assert isinstance(error, CannotConnect)
            assert error.message.startswith(f"NATS at {server.url}: ")
            assert "unable to get local issuer certificate" in error.message
        error = await refusal(server.url, tls=trusting, tls_hostname="elsewhere")
        assert "not valid for 'elsewhere'" in error.message
        server.kill()
        server.start(tls_config(authority, both=True))
        error = await refusal(server.url, tls=trusting)
        assert isinstance(error, CannotConnect)
        trusting.load_cert_chain(*authority.sign("client"))
        await serves(server.url, tls=trusting)


def tls_config(authority: Authority, *, both: bool = False) -> dict[str, str]:
    certificate, key = authority.sign("server")
    of_clients = f", ca_file: '{authority.certificate}', verify: true" if both else ""
    return {"tls": f"{{ cert_file: '{certificate}', key_file: '{key}'{of_clients} }}"}
