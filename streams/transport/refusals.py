"""What this transport refuses at start, because it would silently do something else."""

from __future__ import annotations

from typing import Any

from faust.exceptions import ImproperlyConfigured
from faust.types.enums import ProcessingGuarantee

from streams.transport.schema import RunSchema


def refuse_settings(app: Any) -> None:
    """Refuse what this transport would silently not do. Raises ImproperlyConfigured with the reason."""
    conf = app.conf
    if len(app.tables):
        raise ImproperlyConfigured("Faust tables would start empty without an error on this transport: keep own state")
    if conf.processing_guarantee != ProcessingGuarantee.AT_LEAST_ONCE:
        raise ImproperlyConfigured(
            "processing_guarantee exactly_once is not supported: at_least_once, idempotent effects"
        )
    if conf.broker_credentials is not None or conf.ssl_context is not None:
        raise ImproperlyConfigured(
            "broker_credentials and ssl_context would be ignored and the connection be plaintext: use KafkaConnection"
        )
    if not conf.topic_disable_leader:
        raise ImproperlyConfigured("topic_disable_leader must be true: nobody is ever elected leader here")
    if conf.topic_allow_declare:
        raise ImproperlyConfigured("topic_allow_declare must be false: topics are made by the admin command")


def refuse_topics(app: Any) -> None:
    """Refuse topics that are not made of runs, or that two agents share. Raises ImproperlyConfigured."""
    for name, channels in app.topics._topic_name_index.items():
        if len(channels) > 1:
            raise ImproperlyConfigured(f"two agents on topic {name}: the first to finish a run would commit for both")
        for channel in channels:
            if not isinstance(channel.schema, RunSchema):
                raise ImproperlyConfigured(f"topic {name} needs schema=RunSchema()")
            if channel.acks:
                raise ImproperlyConfigured(f"topic {name} needs acks=False: the ledger commits")
