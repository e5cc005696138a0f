"""What users write: endpoints and policies. Frozen, unknown keys refused, checked whole before anything starts."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schemas.actions import MAX_TTL_MS, Mode
from schemas.ids import clean_id, is_plain_id
from schemas.signals import SEVERITY_ORDER, Severity, SignalKind, SubjectKind
from schemas.weburl import WebUrl

CallerId = Annotated[str, Field(min_length=1), AfterValidator(clean_id)]
"""A caller as the log names it: an odd id stands there as its hash."""
Seconds = Annotated[float, Field(gt=0)]


def _url(text: str) -> str:
    WebUrl.parse(text)
    return text


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


Url = Annotated[str, AfterValidator(_url)]
"""A URL that Palisade asks: http or https, no password in it."""


class Config(BaseModel):
    """Base of all configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _names_differ(kind: Literal["rules", "endpoints"], names: list[str], why: str = "") -> None:
    """Raises PydanticCustomError whose context's `steps` lead to the second of two that are named the same."""
    for number, name in enumerate(names):
        if name in names[:number]:
            steps = (kind, number, "name")
            raise PydanticCustomError(
                "named_twice", "two {kind} are named {name}" + why, {"kind": kind, "name": repr(name), "steps": steps}
            )


class Bucket(Config):
    """A number becomes the lower edge of its bucket, `floor(x / bucket) * bucket`; what is no number, missing."""

    bucket: float = Field(gt=0, allow_inf_nan=False)


def _said_whole(value: Any, of_rule: ValidatorFunctionWrapHandler) -> Any:
    """One sentence instead of one for each form that a rule could have had."""
    try:
        return of_rule(value)
    except ValidationError as error:
        raise ValueError("a rule is drop, hash, or {bucket: width}, with a width above 0") from error


SensitiveRule = Annotated[Literal["drop", "hash"] | Bucket, WrapValidator(_said_whole)]
SENSITIVE_CALLER = "@caller"
"""Stands in `sensitive` for the caller's id."""


class WebhookConfig(Config):
    """Who carries out what is wanted of an endpoint that has no Guard.

    `secret_files`: one secret each (`whsec_...`, or `whsk_...` for Ed25519); all of them sign, so that a receiver can change
    from one to the next. `fallback_health_url`: asked each 2 s; without an answer 2xx in time there is no fallback (R9).
    `allow_private`: addresses of private networks and of this machine; `allow_networks`: these too, link-local ones
    included. `allow_plaintext`: http off this machine. `ca_file`: certificates to trust in place of the system's.
    `alert_after_s`: people are told when something is undelivered for so long.
    """

    url: Url
    secret_files: tuple[str, ...] = Field(min_length=1, max_length=4)
    fallback_health_url: Url | None = None
    allow_private: bool = False
    allow_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field((), max_length=32)
    allow_plaintext: bool = False
    ca_file: str | None = None
    alert_after_s: Seconds = 10


class EndpointConfig(Config):
    """One endpoint. Hard bounds (`*_max`) are the owner's word and need no learning.

    `guard: false`: no serving process embeds Guard, so ingest writes the reports from what it pairs. `trust_requests`: who
    writes to `palisade.requests` authenticated its callers; otherwise the `caller_auth` that stands there is `claimed`.
    `producer_keys` are base64 Ed25519 public keys whose reports are believed; reports signed by none of them count as
    `claimed`, and nobody is acted on by their word. `sensitive`: what becomes of features that must not reach Kafka as they
    are, by name, or by place (`"0"` is the first) where features are a list; `@caller: hash` hides who asks. `events_per_day`
    turns the false-alarm budget into alarms a row. `label_tolerance`: how far an amount that was predicted may be from
    its label and still be right; without it labels of amounts are not judged. `outliers`: the tier in which single rows
    are scored; `rich` tells more of what lies near usual rows, at up to 20 us a row.
    """

    name: str
    mode: Mode | None = None
    guard: bool = True
    trust_requests: bool = False
    producer_keys: tuple[str, ...] = ()
    trust_unsigned: bool = False
    events_per_day: float | None = Field(None, gt=0)
    false_alarms_per_30_days: float = Field(1.0, gt=0)
    caller_rate_max: float | None = Field(None, gt=0)
    latency_max_ms: float | None = Field(None, gt=0)
    error_share_max: float | None = Field(None, gt=0, le=1)
    label_tolerance: float | None = Field(None, ge=0, allow_inf_nan=False)
    outliers: Literal["fast", "rich"] = "fast"
    allowlist: tuple[CallerId, ...] = ()
    webhook: WebhookConfig | None = None
    sensitive: dict[Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)], SensitiveRule] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _callers_are_hashed_at_most(self) -> EndpointConfig:
        if self.sensitive.get(SENSITIVE_CALLER, "hash") != "hash":
            raise ValueError("sensitive: @caller can be hashed, nothing else: limits need to know who asks")
        return self

    @model_validator(mode="after")
    def _plain_name(self) -> EndpointConfig:
        if not is_plain_id(self.name):
            raise ValueError(f"endpoint name {self.name!r} is not 1-128 bytes of [A-Za-z0-9._:@-]")
        if "@" in self.name:
            raise ValueError(
                f"endpoint name {self.name!r} has an @, which separates endpoint and version: choose another"
            )
        return self


class When(Config):
    """Which signals a rule answers: of these kinds, about one of these kinds of subject, and at least so severe."""

    kinds: tuple[SignalKind, ...] = Field(min_length=1)
    subjects: tuple[SubjectKind, ...] = Field(get_args(SubjectKind), min_length=1)
    severity: Severity = "warning"

    def matches(self, kind: str, subject_kind: str, severity: str) -> bool:
        severe = SEVERITY_ORDER[severity] >= SEVERITY_ORDER[self.severity]
        return severe and kind in self.kinds and subject_kind in self.subjects


class Rule(Config):
    """The first rule that matches a signal decides."""

    name: str
    when: When
    then: Literal["fallback", "limit", "notify"]


class Durations(Config):
    """Seconds. `action_s`: life of an action without fresh evidence. `recover_for_s`: calm before a signal recovers."""

    action_s: float = Field(600, gt=0, le=MAX_TTL_MS / 1000)
    recover_for_s: Seconds = 30
    cool_down_s: float = Field(60, ge=0)


class LimitFloor(Config):
    """A limit is never lower than the larger of these (R8)."""

    per_s: float = Field(1.0, gt=0)
    share_of_usual: float = Field(0.1, gt=0, le=1)


class Caps(Config):
    """The largest blast radius (R3)."""

    endpoints_share: float = Field(0.2, ge=0, le=1)
    endpoints_min: int = Field(1, ge=0)
    endpoint_actions_per_minute: int = Field(6, ge=1)
    callers_share: float = Field(0.05, ge=0, le=1)
    callers_min: int = Field(3, ge=0)


class PolicyConfig(Config):
    """A policy file."""

    name: str = "default"
    mode: Mode = "observe"
    rules: tuple[Rule, ...] = Field(min_length=1)
    durations: Durations = Durations()
    limit_floor: LimitFloor = LimitFloor()
    caps: Caps = Caps()
    drift_critical_factor: float = Field(5.0, gt=1)
    trips_before_hold: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _rule_names_differ(self) -> PolicyConfig:
        _names_differ("rules", [rule.name for rule in self.rules], ": the journal could not tell them apart")
        return self


class KafkaConfig(Config):
    """How to reach Kafka. Plaintext is refused off loopback unless `allow_plaintext` says otherwise.

    Secrets are files, never values: `sasl_password_file`, `ssl_key_location`, `ssl_key_password_file`. `extra`: further
    librdkafka settings; none that says where or how to connect, or that holds a secret.
    """

    bootstrap: str = "127.0.0.1:9092"
    allow_plaintext: bool = False
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password_file: str | None = None
    ssl_ca_location: str | None = None
    ssl_certificate_location: str | None = None
    ssl_key_location: str | None = None
    ssl_key_password_file: str | None = None
    extra: dict[str, str | int | bool] = Field(default_factory=dict)
    partitions: int = Field(4, ge=1, le=10_000)
    """Partitions of the input topics; never changed in place."""
    replication: int = Field(1, ge=1)
    session_timeout_s: float = Field(10.0, ge=6.0, le=60.0)
    """A dead worker keeps its partitions so long; respond's 6 s stand. Brokers refuse less than 6 s."""
    embedded: bool = False
    """The broker of `palisade dev`: it compacts nothing and fences nobody, so snapshots lie in `data_dir`."""


class ClickHouseConfig(Config):
    """`url` unset: the embedded engine under `data_dir`. `port`: of the HTTP port on loopback (0: any free one).

    Rows and the password leave this machine by https alone, unless `allow_plaintext` says otherwise.
    """

    url: str | None = Field(None, pattern="^https?://")
    user: str = "default"
    password_file: str | None = None
    port: int = Field(0, ge=0, le=65535)
    allow_plaintext: bool = False

    @model_validator(mode="after")
    def _refuse_plaintext_off_loopback(self) -> ClickHouseConfig:
        if self.url is not None and self.url.startswith("http://") and not self.allow_plaintext:
            host = urlsplit(self.url).hostname or ""
            if not _is_loopback(host):
                raise ValueError(
                    f"url: {host} is not on this machine and http is not encrypted: use https, or set allow_plaintext to true"
                )
        return self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class IngestConfig(Config):
    """`producer_key_file`: signs what ingest writes; list its public key in `producer_keys` of endpoints without Guard."""

    producer_key_file: str | None = None


class PalisadeConfig(Config):
    """`palisade.yaml`. Paths are relative to the file."""

    kafka: KafkaConfig = KafkaConfig()
    clickhouse: ClickHouseConfig = ClickHouseConfig()
    data_dir: str = "palisade-data"
    policy: str | None = None
    operator_keys: tuple[str, ...] = ()
    signing_key_file: str | None = None
    redaction_key_file: str | None = None
    """The secret of `sensitive: hash`, 64 hex digits; else PALISADE_REDACTION_KEY holds them, or names a file of them."""
    ingest: IngestConfig = IngestConfig()
    endpoints: tuple[EndpointConfig, ...] = ()

    @model_validator(mode="after")
    def _endpoint_names_differ(self) -> PalisadeConfig:
        _names_differ("endpoints", [endpoint.name for endpoint in self.endpoints])
        return self

    def endpoint(self, name: str) -> EndpointConfig | None:
        return next((endpoint for endpoint in self.endpoints if endpoint.name == name), None)
