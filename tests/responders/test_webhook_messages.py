"""Messages to webhook receivers: judged by the independent package `standardwebhooks`."""

from __future__ import annotations

import base64
import json
import time
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from responders.journal import replay, takeover
from responders.state import Action, EndpointRecord, RespondState
from responders.webhooks import Message, Secret, load_secrets, message_for, parse_secret
from schemas.errors import ConfigError
from schemas.webhooks import MAX_BODY_BYTES, WebhookBody
from tests.responders.given import T0, Responder, caller_signal, command, failing, mandate

CANARY = base64.b64encode(b"canary-canary-canary-canary-1234").decode()
secrets = st.binary(min_size=24, max_size=64)
bodies = st.text().map(str.encode)


def whsec(raw: bytes) -> str:
    return "whsec_" + base64.b64encode(raw).decode()


def message(body: bytes, name: str = "0123456789abcdef") -> Message:
    return Message(name, "credit", 1, body, ())


def signed(sent: Message, *keys: Secret, at_s: int | None = None) -> dict[str, str]:
    return dict(sent.headers(int(time.time()) if at_s is None else at_s, keys))


@given(secrets, bodies)
def test_the_independent_package_takes_what_we_sign(raw: bytes, body: bytes) -> None:
    headers = signed(message(body), parse_secret(whsec(raw)))

    Webhook(whsec(raw)).verify(body, headers, json_parse=False)


@given(secrets, bodies, st.integers(0, 4_000_000_000))
def test_the_independent_package_signs_as_we_do(raw: bytes, body: bytes, at_s: int) -> None:
    theirs = Webhook(whsec(raw)).sign("0123456789abcdef", datetime.fromtimestamp(at_s, UTC), body.decode())

    assert signed(message(body), parse_secret(whsec(raw)), at_s=at_s)["webhook-signature"] == theirs


@given(secrets, secrets, st.binary(min_size=1).filter(lambda body: body.decode("utf-8", "ignore").encode() == body))
def test_another_secret_or_body_is_refused(raw: bytes, other: bytes, body: bytes) -> None:
    headers = signed(message(body), parse_secret(whsec(raw)))

    with pytest.raises(WebhookVerificationError):
        Webhook(whsec(raw)).verify(body + b" ", headers, json_parse=False)
    if raw != other:
        with pytest.raises(WebhookVerificationError):
            Webhook(whsec(other)).verify(body, headers, json_parse=False)


@given(secrets, secrets)
def test_during_a_rotation_a_receiver_with_either_secret_takes_it(old: bytes, new: bytes) -> None:
    headers = signed(message(b"{}"), parse_secret(whsec(old)), parse_secret(whsec(new)))

    assert len(headers["webhook-signature"].split(" ")) == 2
    Webhook(whsec(old)).verify(b"{}", headers)
    Webhook(whsec(new)).verify(b"{}", headers)


@given(st.binary(min_size=32, max_size=32), bodies, st.booleans())
def test_an_asymmetric_signature_verifies_with_the_public_key_alone(seed: bytes, body: bytes, long: bool) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    raw = seed + private.public_key().public_bytes_raw() if long else seed
    secret = parse_secret("whsk_" + base64.b64encode(raw).decode())
    headers = signed(message(body), secret)

    version, _, signature = headers["webhook-signature"].partition(",")
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    public = base64.b64decode(secret.public.removeprefix("whpk_"))  # type: ignore[attr-defined]
    assert version == "v1a"
    Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature), content)


def test_a_receiver_that_knows_v1_alone_passes_over_v1a() -> None:
    raw = b"s" * 32
    both = (parse_secret("whsk_" + base64.b64encode(raw).decode()), parse_secret(whsec(raw)))

    Webhook(whsec(raw)).verify(b"{}", signed(message(b"{}"), *both))


def fallback_on_a() -> Responder:
    responder = Responder(mandate())
    responder.take(failing("a"))
    return responder


def test_a_flip_is_told_whole_with_its_moments_and_reasons() -> None:
    responder = fallback_on_a()
    responder.take(caller_signal("bob", "a"))
    sent = message_for(responder.state, "a", responder.now_ms)

    body = json.loads(sent.body)
    assert set(body) == {"type", "timestamp", "data"}
    assert (body["type"], body["timestamp"]) == ("palisade.endpoint.wanted", "2023-11-14T22:13:20.000Z")
    data = body["data"]
    assert (data["endpoint"], data["route"], data["mode"]) == ("a", "fallback", "enforce")
    assert (data["reason"], data["epoch"]) == ("endpoint_failing", sent.epoch)
    assert datetime.fromisoformat(data["expires_at"]).timestamp() * 1000 == T0 + responder.mandate.action_ms
    (limit,) = data["limits"]
    assert (limit["caller"], limit["rate_per_s"], limit["reason"]) == ("bob", 2.0, "caller_out_of_pattern")
    assert sent.holds == (data["action_id"], limit["action_id"])
    WebhookBody.model_validate_json(sent.body)


def test_a_release_is_told_as_primary_without_limits_or_expiry() -> None:
    responder = fallback_on_a()
    before = message_for(responder.state, "a", responder.now_ms)
    responder.later(responder.mandate.action_ms + 1)
    sent = message_for(responder.state, "a", responder.now_ms)

    data = json.loads(sent.body)["data"]
    assert (data["route"], data["limits"]) == ("primary", [])
    assert "expires_at" not in data
    assert sent.holds == ()
    assert sent.epoch > before.epoch


def test_what_expired_is_not_told_and_observed_actions_are_none_of_the_receivers_business() -> None:
    held = Action("i", "enforce", "endpoint_failing", "palisade", T0, T0 + 10)
    seen = Action("j", "observe", "endpoint_failing", "palisade", T0, T0 + 10)
    state = RespondState(endpoints={"a": EndpointRecord(1, held), "b": EndpointRecord(1, seen, {"bob": seen})})

    assert message_for(state, "a", T0).holds == ("i",)
    assert message_for(state, "a", T0 + 10).holds == ()
    assert message_for(state, "b", T0).holds == ()


@given(st.integers(0, 400), st.integers(1, 128))
def test_a_body_stays_below_20_kb_and_counts_the_limits_that_it_leaves_out(count: int, length: int) -> None:
    limits = {
        f"{number:03d}".ljust(length, "x")[-128:]: Action(
            f"{number:032d}", "enforce", "caller_out_of_pattern", "palisade", T0 + number, T0 + 600_000, 1.0 / 3.0
        )
        for number in range(count)
    }
    sent = message_for(RespondState(endpoints={"a": EndpointRecord(1, None, limits)}), "a", T0)

    data = json.loads(sent.body)["data"]
    assert len(sent.body) < MAX_BODY_BYTES
    assert len(data["limits"]) + data["limits_left_out"] == len(limits)
    assert [limit["action_id"] for limit in data["limits"]] == [f"{n:032d}" for n in range(len(data["limits"]))]
    assert not data["limits_left_out"] or len(data["limits"]) >= 60


def test_an_id_is_of_its_bytes_alone_and_fits_the_signed_content() -> None:
    state = fallback_on_a().state
    now, later = (message_for(state, "a", at) for at in (T0, T0 + 1))
    renewed = message_for(replace(state, endpoints={"a": replace(state.record("a"), changed_ms=T0 + 1)}), "a", T0 + 1)

    assert now == later
    assert now.id != renewed.id
    assert "." not in now.id


def test_who_replays_the_journal_says_the_same_under_the_same_id() -> None:
    responder = fallback_on_a()
    responder.take(command("restore", "a"))
    heir = takeover(replay(responder.journal, RespondState()), T0 + 9_000)[0]

    assert message_for(heir, "a", T0 + 9_000) == message_for(responder.state, "a", T0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CANARY, "must begin with whsec_"),
        (f"whsec-{CANARY}", "must begin with whsec_"),
        (f"whsec_{CANARY}!", "no base64"),
        (f"whsec_{CANARY[:28]}", "24 to 64"),
        ("whsec_" + base64.b64encode(b"canary-" * 10).decode(), "24 to 64"),
        (f"whsk_{CANARY[:28]}", "an Ed25519 key has 32"),
        ("whsk_" + base64.b64encode(b"c" * 64).decode(), "of another key"),
        (f"whsec_{CANARY}\nwhsec_{CANARY}", "no base64"),
        ("é" + CANARY, "one line"),
        (CANARY * 100, "one line"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused_without_a_word_of_it(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "hook.secret").write_text(text)

    with pytest.raises(ConfigError, match=words) as caught:
        load_secrets([tmp_path / "hook.secret"])
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    assert "canary" not in shown
    assert CANARY[:12] not in shown
    assert "hook.secret" in shown


def test_a_secret_is_never_shown() -> None:
    for text in (f"whsec_{CANARY}", f"whsk_{CANARY[:43]}="):
        secret = parse_secret(text)
        assert CANARY[:12] not in repr(secret) + str(secret)
