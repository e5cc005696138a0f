"""Metrics have as many series as the configuration asks for, up to a bound."""

from __future__ import annotations

from responders.delivery import Answer
from streams.metrics import MAX_ENDPOINT_LABELS, OTHER, Metrics


def test_endpoints_beyond_the_bound_share_their_series() -> None:
    metrics = Metrics("respond")
    for _ in range(2):
        for number in range(MAX_ENDPOINT_LABELS + 50):
            metrics.webhook(f"e{number}", Answer(status=200), 0.1)

    (family,) = [each for each in metrics.registry.collect() if each.name == "palisade_webhook_attempts"]
    counts = {sample.labels["endpoint"]: sample.value for sample in family.samples if sample.name.endswith("_total")}
    assert len(counts) == MAX_ENDPOINT_LABELS + 1
    assert (counts["e0"], counts[OTHER]) == (2.0, 100.0)
