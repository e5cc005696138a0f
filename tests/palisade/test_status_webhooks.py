"""`palisade status` tells what became of an endpoint's webhook."""

from __future__ import annotations

import pytest

from palisade.cli import options, status
from palisade.overview import Overview
from responders.decide import Delivered, decide
from responders.state import RespondState
from schemas.config import EndpointConfig, PalisadeConfig, WebhookConfig
from tests.responders.given import T0, mandate

HOOKED = EndpointConfig(name="a", webhook=WebhookConfig(url="https://x.example/", secret_files=("s",)))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("webhook_delivered", "webhook: delivered 22:13:20 UTC, epoch 7"),
        ("webhook_failing", "webhook: FAILING since 22:13:20 UTC, epoch 7"),
        ("webhook_disabled", "webhook: GONE (410) since 22:13:20 UTC, epoch 7"),
        ("webhook_given_up", "webhook: GIVEN UP at 22:13:20 UTC, epoch 7"),
        (None, "webhook: nothing told in the last hour"),
    ],
)
def test_each_outcome_is_a_line_of_its_endpoint(
    reason: str | None, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options.console, "_width", 220)
    overview = Overview()
    if reason is not None:
        given = Delivered("a", reason, "m", "epoch 7")  # type: ignore[arg-type]
        _, (decision,) = decide(RespondState(), given, T0, mandate())
        overview.webhooks["a"] = decision

    status.show(PalisadeConfig(endpoints=(HOOKED, EndpointConfig(name="b"))), overview, T0)
    out = capsys.readouterr().out
    assert words in out
    assert out.count("webhook") == 1
