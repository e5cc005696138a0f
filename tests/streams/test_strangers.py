"""Endpoint names that anybody makes up open no blocks and hold no restart back."""

from __future__ import annotations

from schemas.topics import VERDICTS
from tests.streams.log_of_predictions import open_log
from tests.streams.test_prediction_log import feed, made_up, signals


def test_invented_endpoints_open_no_block_and_hold_no_restart_back() -> None:
    log = open_log()
    sent = made_up("stranger", 5)

    out = feed(log, sent, [])

    assert not log.pending
    assert log.restart == sent.offsets[-1] + 1
    assert [signal.kind for signal in signals(out)] == ["unknown_endpoint"]
    assert any(record.topic == VERDICTS for record in out)
