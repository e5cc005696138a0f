"""Put the run transport into a Faust app."""

from __future__ import annotations

from collections.abc import Mapping

import faust
from faust.transport import base

from streams.transport.consumer import Consumer, ConsumerOptions
from streams.transport.producer import Producer
from streams.transport.settings import Setting


class Transport(base.Transport):
    """librdkafka below Faust: a run of offsets is one message."""

    driver_version = "run"


def install(app: faust.App, consumer: ConsumerOptions, producer: Mapping[str, Setting]) -> None:
    """Make `app` read and write through this transport. Before any agent is declared."""
    transport = Transport(app.conf.broker, app)
    transport.Consumer = type("Consumer", (Consumer,), {"options": consumer})  # type: ignore[misc]
    transport.Producer = type("Producer", (Producer,), {"settings": dict(producer)})  # type: ignore[misc]
    app.transport = transport
    app.producer_transport = transport
