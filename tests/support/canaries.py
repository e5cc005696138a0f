"""A secret of its own in each setting that holds or names one, so that anything said or written can be searched for all of them."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from responders.signing import SigningKey
from schemas.config import PalisadeConfig
from tests.support.certificates import Authority

MARK = "canary-"
"""Begins each secret that is a text of our choice."""
SECRETS = frozenset(
    {
        "kafka.sasl_password_file",
        "kafka.ssl_key_location",
        "kafka.ssl_key_password_file",
        "clickhouse.password_file",
        "signing_key_file",
        "redaction_key_file",
        "ingest.producer_key_file",
        "endpoints.webhook.secret_files",
    }
)
"""Settings that name a file of a secret. No setting holds one itself."""
OPEN = {
    "kafka.ssl_ca_location": "certificates, which are public",
    "kafka.ssl_certificate_location": "a certificate, which is public",
    "endpoints.webhook.ca_file": "certificates, which are public",
    "operator_keys": "public keys",
    "endpoints.producer_keys": "public keys",
}
"""Settings that look like it, and why they are none."""
_LOOKS_SECRET = re.compile(r"password|passphrase|secret|token|credential|key|_files?$|_location$|pem")


def settings_that_look_secret(model: type[BaseModel] = PalisadeConfig, path: str = "") -> Iterator[str]:
    """Names of settings, sections first, that by their name hold or name a secret."""
    for name, field in model.model_fields.items():
        sections = [part for part in _parts(field.annotation) if issubclass(part, BaseModel)]
        for section in sections:
            yield from settings_that_look_secret(section, f"{path}{name}.")
        if not sections and _LOOKS_SECRET.search(name):
            yield f"{path}{name}"


def _parts(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


class Canaries:
    """Writes a configuration in `folder` with every secret set. Nothing answers at its addresses unless `kafka` names a broker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept = folder / "kept-secret"
        self._kept.mkdir(parents=True)
        self._forms: dict[str, tuple[str, ...]] = {}
        authority = Authority(self._kept)
        key_password = self._text("kafka.ssl_key_password_file")
        certificate, key = authority.issue("client", key_password)
        self._forms["kafka.ssl_key_location"] = _body(key)
        webhook = secrets.token_bytes(32)
        self._file("endpoints.webhook.secret_files", "whsec_" + base64.b64encode(webhook).decode(), webhook)
        redaction = secrets.token_bytes(32)
        self._file("redaction_key_file", redaction.hex(), redaction)
        self._text("kafka.sasl_password_file")
        self._text("clickhouse.password_file")
        self.keys = {name: self._key(name) for name in ("signing_key_file", "ingest.producer_key_file")}
        self.section = {
            "bootstrap": "127.0.0.1:1",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "palisade",
            "sasl_password_file": self.file("kafka.sasl_password_file"),
            "ssl_ca_location": str(authority.file),
            "ssl_certificate_location": str(certificate),
            "ssl_key_location": str(key),
            "ssl_key_password_file": self.file("kafka.ssl_key_password_file"),
            "partitions": 1,
        }
        self.config = self.write()

    def write(self, **changes: Any) -> Path:
        """A configuration with these sections in place of its own."""
        webhook = {
            "url": "https://127.0.0.1:1025/hook",
            "allow_private": True,
            "secret_files": [self.file("endpoints.webhook.secret_files")],
        }
        endpoint = {"name": "credit", "sensitive": {"ssn": "drop", "email": "hash"}, "webhook": webhook}
        whole = {
            "kafka": self.section,
            "clickhouse": {"url": "http://127.0.0.1:1", "password_file": self.file("clickhouse.password_file")},
            "signing_key_file": self.file("signing_key_file"),
            "redaction_key_file": self.file("redaction_key_file"),
            "ingest": {"producer_key_file": self.file("ingest.producer_key_file")},
            "operator_keys": [self.keys["signing_key_file"].public_base64],
            "endpoints": [endpoint],
        } | changes
        path = self.folder / "palisade.yaml"
        path.write_text(yaml.safe_dump(whole))
        return path

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._forms)

    def file(self, setting: str) -> str:
        """Where the secret of a setting lies."""
        return str(self._kept / setting)

    def in_text(self, text: str) -> set[str]:
        """Settings whose secret stands in `text`, in any of its forms."""
        return {setting for setting, forms in self._forms.items() if any(form in text for form in forms)}

    def in_files(self, folder: Path) -> set[tuple[str, str]]:
        """Files below `folder`, but those of the secrets themselves, and the settings whose secret stands in them."""
        return {
            (path.name, setting)
            for path in folder.rglob("*")
            if path.is_file() and not self.keeps(path)
            for setting in self.in_text(path.read_bytes().decode("latin-1"))
        }

    def keeps(self, path: Path) -> bool:
        """Whether a file is one of the secrets."""
        return self._kept in path.parents

    def _text(self, setting: str) -> str:
        secret = MARK + secrets.token_urlsafe(18)
        self._file(setting, secret)
        return secret

    def _file(self, setting: str, content: str, raw: bytes = b"") -> None:
        Path(self.file(setting)).write_text(content + "\n")
        forms = (content, content.removeprefix("whsec_"))
        self._forms[setting] = (*forms, raw.hex(), repr(raw)[2:-1]) if raw else forms

    def _key(self, setting: str) -> SigningKey:
        key = SigningKey.generate()
        key.save(self.file(setting))
        self._forms[setting] = _body(Path(self.file(setting)))
        return key


def _body(pem: Path) -> tuple[str, ...]:
    """The lines of a PEM file that are the key."""
    return tuple(line for line in pem.read_text().splitlines() if not line.startswith("-----") and len(line) > 20)
