"""The targets: every path by which bytes of others come in. To add one: a function that makes it, one line in TARGETS."""

from __future__ import annotations

from tests.fuzz import clients, control, ingest, logs, states, texts, webhooks
from tests.fuzz.case import Target

TARGETS: tuple[Target, ...] = (
    logs.decoder(),
    logs.predictions(),
    logs.reports(),
    *logs.audited(),
    logs.feedback(),
    ingest.pairing(),
    logs.redaction(),
    control.respond(),
    control.journal(),
    control.responder_state(),
    control.directives(),
    clients.follower(),
    clients.emitter(),
    clients.middleware(),
    states.profile_topic(),
    states.profile(),
    *states.detectors(),
    states.saved_part_of_predictions(),
    states.saved_part_of_reports(),
    states.manifest(),
    texts.configuration(),
    texts.policy(),
    texts.sql(),
    texts.http_body(),
    texts.form(),
    webhooks.answer(),
    webhooks.url(),
    webhooks.secret(),
)
"""In the order in which each round takes them."""

BY_NAME: dict[str, Target] = {target.name: target for target in TARGETS}
