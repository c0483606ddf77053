"""NATS's keys, and the signed claims that an operator gives out."""

from __future__ import annotations

import base64
import json
import os
from importlib import import_module
from typing import Any

__all__ = ("Key", "credentials", "operator_config")

# It has no types.
nkeys: Any = import_module("nkeys")

_UNLIMITED = -1


class Key:
    """
    A pair of keys.

    Attributes:
        seed: The private one.
        public: The public one.
    """

    def __init__(self, kind: int) -> None:
        self.seed: str = nkeys.encode_seed(os.urandom(32), kind).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public: str = self._pair.public_key.decode()

    @classmethod
    def user(cls) -> Key:
        return cls(nkeys.PREFIX_BYTE_USER)

    @classmethod
    def account(cls) -> Key:
        return cls(nkeys.PREFIX_BYTE_ACCOUNT)

    @classmethod
    def operator(cls) -> Key:
        return cls(nkeys.PREFIX_BYTE_OPERATOR)

    def claim(self, subject: Key, kind: str, **fields: Any) -> str:
        """Return what this key says of another one, signed."""
        claims = {
            "iss": self.public,
            "sub": subject.public,
            "iat": 1_700_000_000,
            "jti": subject.public,
            "name": kind,
            "nats": {"type": kind, "version": 2, **fields},
        }
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claims)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


def operator_config(operator: Key, account: Key) -> dict[str, str]:
    """Return the configuration of a server that knows the users of one account by its signature."""
    system = Key.account()
    limits = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED
    )
    stored = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _UNLIMITED)
    claims = {
        account.public: operator.claim(
            account, "account", limits={**limits, **stored, "wildcards": True}
        ),
        system.public: operator.claim(system, "account", limits={**limits, "wildcards": True}),
    }
    return {
        "operator": operator.claim(operator, "operator"),
        "system_account": system.public,
        "resolver": "MEMORY",
        "resolver_preload": f"{{ {', '.join(map(': '.join, claims.items()))} }}",
    }


def credentials(account: Key, user: Key) -> str:
    """Return the content of a credentials file."""
    limits = dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)
    claim = account.claim(user, "user", **limits)
    return f"""-----BEGIN NATS USER JWT-----
{claim}
------END NATS USER JWT------
-----BEGIN USER NKEY SEED-----
{user.seed}
------END USER NKEY SEED------
"""


def _part(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
