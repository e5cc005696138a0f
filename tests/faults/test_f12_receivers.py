"""F12: webhook receivers that are slow, failing, redirecting, closing, dripping or endless beside one that is well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palisade.operate import Operator, Wanted, order
from responders.delivery import FIRST_DEADLINE_S
from responders.signing import SigningKey
from schemas.config import EndpointConfig, WebhookConfig
from tests.faults.ground import Ground
from tests.faults.hostile import MANNERS, Receiver
from tests.faults.load import GUARDED, PLAIN
from tests.faults.respond_pair import WITHIN_S, Responders
from tests.faults.stage import Setup, Stage
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared, pytest.mark.fault("F12")]
ORDERS, FULL_ORDERS = 12, 200
SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ="


def endpoint(name: str, port: int, secret_file: str) -> EndpointConfig:
    url = f"http://127.0.0.1:{port}/"
    webhook = WebhookConfig(url=url, secret_files=(secret_file,), allow_private=True, alert_after_s=2)
    return EndpointConfig(name=name, webhook=webhook, mode="enforce")


@dataclass(frozen=True, slots=True)
class Receivers:
    """One that is well, and one of each manner that is not."""

    well: Receiver
    bad: dict[str, Receiver]

    def config(self, secret: Path) -> dict[str, Any]:
        """The section of a configuration in which each has an endpoint, beside those of the load."""
        named = {"well": self.well, **self.bad}
        hooked = [endpoint(name, each.port, str(secret)) for name, each in named.items()]
        plain = EndpointConfig(name=PLAIN, guard=False, trust_requests=True)
        return {"endpoints": (EndpointConfig(name=GUARDED), plain, *hooked)}


@contextmanager
def receivers() -> Iterator[Receivers]:
    with ExitStack() as stack:
        well = stack.enter_context(Receiver("good"))
        yield Receivers(well, {manner: stack.enter_context(Receiver(manner)) for manner in MANNERS})


def test_receivers_that_misbehave_delay_nobody_else_and_each_webhook_has_its_end(
    ground: Ground, tmp_path: Path
) -> None:
    secret = tmp_path / "hook.secret"
    secret.write_text(SECRET)
    with receivers() as told, ground.stage(Setup(kafka=ground.full, config=told.config(secret))) as stage:
        stage.load.start()
        misbehaving(stage, ground, told)
        stage.settle()
        stage.prove(must=("I1", "I5", "I6", "I11"))


def misbehaving(stage: Stage, ground: Ground, told: Receivers) -> None:
    well, bad = told.well, told.bad
    operator = Operator("person:test", SigningKey.load(stage.stack.keys.operator))
    responders = Responders(stage)

    def limit(name: str, caller: str) -> None:
        order(stage.connection, operator, Wanted("limit", name, caller, 2.0))

    def heard(messages: int) -> bool:
        return len(well.told) >= messages

    def told_anew() -> bool:
        return all(receiver.told[-1].id not in before[name] for name, receiver in bad.items())

    def delivered() -> bool:
        told = [d.endpoint for e in responders.journal() for d in e.decisions if d.reason == "webhook_delivered"]
        return {"well", *bad} <= set(told)

    for name in bad:
        limit(name, "mallory")
    until(lambda: all(each.told for each in bad.values()), "each that misbehaves was told", WITHIN_S)
    for number in range(1, (FULL_ORDERS if ground.full else ORDERS) + 1):
        limit("well", f"caller-{number}")
        until(partial(heard, number), "the one that is well was told", WITHIN_S)
    delays = well.delays_ms()
    assert np.quantile(delays, 0.99) < FIRST_DEADLINE_S * 1000, f"an attempt that hangs was waited for: {delays}"

    before = {name: {each.id for each in receiver.told} for name, receiver in bad.items()}
    takeovers = responders.takeovers()
    stage.kill(responders.active())  # what is undelivered is not forgotten
    responders.await_takeover(takeovers)
    for receiver in bad.values():
        receiver.manner = "good"
    until(told_anew, "each was told by the new responder, under its epoch", WITHIN_S)
    until(delivered, "each delivery in the journal", WITHIN_S)
    ground.made(len(bad))
