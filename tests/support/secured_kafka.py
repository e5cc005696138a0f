"""Apache Kafka with its authorizer: who connects proves who it is, over TLS, and may do what ACLs grant, nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.support.apache_kafka import ApacheKafka
from tests.support.certificates import Authority

Way = Literal["scram", "mtls"]
SUPER = "super"
"""Whom the authorizer lets do everything: it grants the ACLs."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Files by which one principal says who it is, both ways. Password and the key's password are what it must not tell."""

    name: str
    password: str
    password_file: Path
    certificate: Path
    key: Path
    key_password: str
    key_password_file: Path


class SecuredKafka(ApacheKafka):
    """Listeners SASL_SSL (SCRAM-SHA-512, at `bootstrap`) and SSL with client certificates (at `mtls`); none is plain.

    A certificate's CN is its principal, so `User:palisade-detect` is the same both ways.
    """

    def __init__(self, principals: Iterable[str]) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="secured-kafka-")), ports=3)
        self._own = True
        self._secrets = self._folder / "secrets"
        self._secrets.mkdir()
        self.authority = Authority(self._secrets)
        self._broker = self._secrets / "broker-keystore.pem"
        certificate, key = self.authority.issue("broker")
        self._broker.write_bytes(key.read_bytes() + certificate.read_bytes())
        self.proofs = {name: self._prove(name) for name in (SUPER, *principals)}
        self.mtls = f"127.0.0.1:{self._ports[2]}"

    def section(self, principal: str, way: Way = "scram") -> dict[str, object]:
        """The `kafka` section of a configuration that connects as this principal."""
        proof = self.proofs[principal]
        common = {"ssl_ca_location": str(self.authority.file), "partitions": 1}
        if way == "scram":
            return common | {
                "bootstrap": self.bootstrap,
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_username": proof.name,
                "sasl_password_file": str(proof.password_file),
            }
        return common | {
            "bootstrap": self.mtls,
            "security_protocol": "SSL",
            "ssl_certificate_location": str(proof.certificate),
            "ssl_key_location": str(proof.key),
            "ssl_key_password_file": str(proof.key_password_file),
        }

    def _prove(self, name: str) -> Proof:
        password, key_password = f"canary-password-of-{name}", f"canary-key-password-of-{name}"
        certificate, key = self.authority.issue(name, key_password)
        files = self._secrets / f"{name}.password", self._secrets / f"{name}.key-password"
        for file, secret in zip(files, (password, key_password), strict=True):
            file.write_text(secret + "\n")
        return Proof(name, password, files[0], certificate, key, key_password, files[1])

    def _format_options(self) -> list[str]:
        users = [f"SCRAM-SHA-512=[name={proof.name},password={proof.password}]" for proof in self.proofs.values()]
        return [word for user in users for word in ("--add-scram", user)]

    def _settings(self) -> dict[str, str]:
        scram, controller, mtls = self._ports
        return super()._settings() | {
            "listeners": f"SCRAM://127.0.0.1:{scram},CONTROLLER://127.0.0.1:{controller},MTLS://127.0.0.1:{mtls}",
            "advertised.listeners": f"SCRAM://127.0.0.1:{scram},MTLS://127.0.0.1:{mtls}",
            "listener.security.protocol.map": "CONTROLLER:SSL,SCRAM:SASL_SSL,MTLS:SSL",
            "inter.broker.listener.name": "MTLS",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.scram.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._broker),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.file),
            "ssl.client.auth": "required",
            "listener.name.scram.ssl.client.auth": "none",
            "ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": f"User:broker;User:{SUPER}",
        }
