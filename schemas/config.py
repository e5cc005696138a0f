"""What users write: endpoints and policies. Frozen, unknown keys refused, checked whole before anything starts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.actions import MAX_TTL_MS, Mode
from schemas.ids import clean_id, is_plain_id
from schemas.signals import SEVERITY_ORDER, Severity, SignalKind, SubjectKind

CallerId = Annotated[str, Field(min_length=1), AfterValidator(clean_id)]
"""A caller as the log names it: an odd id stands there as its hash."""
Seconds = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """Base of all configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _names_differ(kind: Literal["rules", "endpoints"], names: list[str], why: str = "") -> None:
    """Raises PydanticCustomError whose context's `steps` lead to the second of two that are named the same."""
    for number, name in enumerate(names):
        if name in names[:number]:
            steps = (kind, number, "name")
            raise PydanticCustomError(
                "named_twice", "two {kind} are named {name}" + why, {"kind": kind, "name": repr(name), "steps": steps}
            )


class EndpointConfig(Config):
    """One endpoint. Hard bounds (`*_max`) are the owner's word and need no learning.

    `guard: false`: no serving process embeds Guard, so ingest writes the reports from what it pairs. `trust_requests`: who
    writes to `palisade.requests` authenticated its callers; otherwise the `caller_auth` that stands there is `claimed`.
    `producer_keys` are base64 Ed25519 public keys whose reports are believed; reports signed by none of them count as
    `claimed`, and nobody is acted on by their word. `events_per_day` turns the false-alarm budget into alarms a row.
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
    allowlist: tuple[CallerId, ...] = ()

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

    Secrets are files, never values: `sasl_password_file`, `ssl_key_location`. `extra`: further librdkafka settings.
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
    extra: dict[str, str | int | bool] = Field(default_factory=dict)
    partitions: int = Field(4, ge=1, le=10_000)
    """Partitions of the input topics; never changed in place."""
    replication: int = Field(1, ge=1)
    embedded: bool = False
    """The broker of `palisade dev`: it compacts nothing and fences nobody, so snapshots lie in `data_dir`."""


class ClickHouseConfig(Config):
    """`url` unset: the embedded engine under `data_dir`. `port`: of the HTTP port on loopback (0: any free one)."""

    url: str | None = Field(None, pattern="^https?://")
    user: str = "default"
    password_file: str | None = None
    port: int = Field(0, ge=0, le=65535)


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
    ingest: IngestConfig = IngestConfig()
    endpoints: tuple[EndpointConfig, ...] = ()

    @model_validator(mode="after")
    def _endpoint_names_differ(self) -> PalisadeConfig:
        _names_differ("endpoints", [endpoint.name for endpoint in self.endpoints])
        return self

    def endpoint(self, name: str) -> EndpointConfig | None:
        return next((endpoint for endpoint in self.endpoints if endpoint.name == name), None)
