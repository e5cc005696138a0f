"""Kafka without TLS: on this machine; elsewhere only where the service says so by name. The roles of Palisade hold the same rule."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import Any

from palisade_client._log import log_fault

VARIABLE = "PALISADE_ALLOW_PLAINTEXT"
"""Set to 1 it allows what the argument `allow_plaintext` does."""
_ENCRYPTED = frozenset({"SSL", "SASL_SSL"})
_ADDRESSES = ("bootstrap.servers", "metadata.broker.list")
_UNVERIFIED = {
    "enable.ssl.certificate.verification": frozenset({"false", "f", "0"}),
    "ssl.endpoint.identification.algorithm": frozenset({"none"}),
}
"""Settings that let anybody pass for the broker, and the values that do."""


class PlaintextRefused(ValueError):
    """A connection without TLS leaves the machine, and nobody allowed it by name."""


def check_encryption(bootstrap: str, settings: Mapping[str, Any], *, allow_plaintext: bool) -> None:
    """Raises PlaintextRefused where predictions and reports would leave this machine readable; says loudly what weakens TLS.

    `settings`: librdkafka's, which may name brokers of their own.
    """
    protocol = str(settings.get("security.protocol", "PLAINTEXT"))
    if protocol.upper() in _ENCRYPTED:
        for name, off in _UNVERIFIED.items():
            value = settings.get(name)
            if value is not None and str(value).lower() in off:
                log_fault(f"{name} IS {value}: whoever stands between can pass for Kafka, read and change all")
        return
    addresses = [bootstrap, *(str(settings[name]) for name in _ADDRESSES if settings.get(name))]
    brokers = [broker.strip() for address in addresses for broker in address.split(",") if broker.strip()]
    exposed = [broker for broker in brokers if not is_loopback(broker)]
    if not exposed:
        return
    if not (allow_plaintext or os.environ.get(VARIABLE, "").strip().lower() in ("1", "true", "yes")):
        raise PlaintextRefused(
            f"{', '.join(exposed)} is not on this machine and {protocol} is not encrypted: set security.protocol to SSL "
            f"or SASL_SSL in kafka_settings, or allow_plaintext=True or {VARIABLE}=1 where the network may be trusted"
        )
    log_fault(
        f"KAFKA IS REACHED WITHOUT TLS at {', '.join(exposed)}, as was allowed: the network can read and change all"
    )


def is_loopback(broker: str) -> bool:
    """Whether `host:port`, read as librdkafka reads it, is this machine."""
    host_and_port = (broker.strip().partition("://")[2] or broker.strip()).partition("/")[0]
    host = (host_and_port.rpartition(":")[0] or host_and_port).strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
