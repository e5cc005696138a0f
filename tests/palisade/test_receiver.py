"""The example webhook receiver: whom it believes, what it carries out, and a real nginx that it flips."""

from __future__ import annotations

import ast
import base64
import contextlib
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from palisade.demo import receiver
from palisade.demo.receiver import MAX_HOLD_S, Receiver, Refused, Route, Wanted, read_secret, verify
from responders.webhooks import Message, iso_time, message_for, parse_secret
from tests.palisade.nginx_scene import SECRET, Scene, receiving, upstream
from tests.responders.given import T0, Responder, failing, mandate

KEY = b"k" * 32
NOW = T0 / 1000


def signed(body: bytes, name: str = "id", at_s: float = NOW, key: bytes = KEY) -> dict[str, str]:
    secret = parse_secret("whsec_" + base64.b64encode(key).decode())
    return dict(Message(name, "a", 1, body, ()).headers(int(at_s), [secret]))


def wanted(epoch: int = 1, route: Route = "fallback", for_s: float = 60.0, endpoint: str = "a") -> Wanted:
    return Wanted(endpoint, epoch, route, NOW + for_s if route == "fallback" else None)


class Given:
    """A receiver whose nginx is a list; `now` is its clock, `broken` its nginx."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now, self.broken = NOW, False
        self.flips: list[Route] = []
        self.told: list[tuple[Route, int, str]] = []
        self.receiver = self.again()

    def again(self) -> Receiver:
        """As after a restart."""
        file = self.folder / "state.json"
        return Receiver("a", file, self._flip, lambda *told: self.told.append(told), now_s=lambda: self.now)

    def _flip(self, route: Route) -> None:
        if self.broken:
            raise RuntimeError("planted")
        self.flips.append(route)


@pytest.fixture
def given_one(tmp_path: Path) -> Given:
    return Given(tmp_path)


def refused(receiver: Receiver, name: str, what: Wanted) -> int:
    with pytest.raises(Refused) as caught:
        receiver.take(name, what)
    return caught.value.status


@given(st.binary(max_size=200), st.binary(min_size=24, max_size=64))
def test_what_the_responder_signs_is_believed(body: bytes, key: bytes) -> None:
    assert verify([b"x" * 24, key], signed(body, key=key), body, NOW, 300) == "id"


@given(st.text(max_size=200), st.binary(min_size=24, max_size=64))
def test_what_the_independent_package_signs_is_believed(body: str, key: bytes) -> None:
    stamp = str(int(NOW))
    signature = Webhook("whsec_" + base64.b64encode(key).decode()).sign(
        "id", datetime.fromtimestamp(int(NOW), UTC), body
    )
    headers = {"webhook-id": "id", "webhook-timestamp": stamp, "webhook-signature": signature}

    assert verify([key], headers, body.encode(), NOW, 300) == "id"


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "other"}, {"webhook-id": "i.d"}, {"webhook-id": ""}, {"webhook-timestamp": str(int(NOW) + 1)},
        {"webhook-timestamp": "now"}, {"webhook-timestamp": "9" * 400}, {"webhook-signature": ""}, {"webhook-signature": "v1"},
        {"webhook-signature": "v1," + base64.b64encode(b"0" * 32).decode()}, {"webhook-signature": "v1,\xff\u1234"},
    ],
    ids=str,
)  # fmt: skip
def test_anything_else_is_refused_by_name(change: dict[str, str]) -> None:
    with pytest.raises(Refused) as caught:
        verify([KEY], signed(b"{}") | change, b"{}", NOW, 300)
    assert caught.value.status in (400, 401)


@pytest.mark.parametrize("away_s", [-301, 301, 10**9])
def test_a_message_that_is_old_or_from_the_future_is_refused_though_it_is_signed(away_s: int) -> None:
    with pytest.raises(Refused, match="clocks"):
        verify([KEY], signed(b"{}", at_s=NOW + away_s), b"{}", NOW, 300)


def test_a_body_that_was_changed_and_another_key_are_refused() -> None:
    for key, body in ((KEY, b"{ }"), (b"x" * 32, b"{}")):
        with pytest.raises(Refused, match="no signature fits"):
            verify([key], signed(b"{}"), body, NOW, 300)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)


@given(
    st.one_of(st.binary(), json_values.map(lambda value: json.dumps(value).encode())),
    json_values,
    json_values,
    json_values,
)
def test_any_body_is_a_message_or_refused(body: bytes, epoch: Any, route: Any, expires: Any) -> None:
    data = {"endpoint": "a", "epoch": epoch, "route": route, "expires_at": expires}
    typed = json.dumps({"type": "palisade.endpoint.wanted", "data": data}).encode()

    for each in (body, typed):
        with contextlib.suppress(Refused):
            read = Wanted.read(each, NOW)
            assert read is None or read.route in ("primary", "fallback")


def test_the_responders_own_messages_are_read() -> None:
    responder = Responder(mandate())
    responder.take(failing("a"))
    flip = message_for(responder.state, "a", T0)
    responder.later(responder.mandate.action_ms + 1)
    back = message_for(responder.state, "a", responder.now_ms)

    assert Wanted.read(flip.body, NOW) == Wanted("a", flip.epoch, "fallback", NOW + responder.mandate.action_ms / 1000)
    assert Wanted.read(back.body, NOW) == Wanted("a", back.epoch, "primary", None)


def test_no_message_holds_a_fallback_for_more_than_an_hour() -> None:
    data = {"endpoint": "a", "epoch": 1, "route": "fallback", "expires_at": iso_time(T0 + 10**9)}
    read = Wanted.read(json.dumps({"type": "palisade.endpoint.wanted", "data": data}).encode(), NOW)

    assert read is not None
    assert read.expires_s == NOW + MAX_HOLD_S


def test_a_message_is_carried_out_once_and_its_renewal_flips_nothing(given_one: Given) -> None:
    one = given_one.receiver
    assert one.take("m1", wanted(1)) == "done"
    assert one.take("m1", wanted(1)) == "known"
    assert one.take("m2", wanted(2, for_s=120)) == "done"
    assert one.take("m3", wanted(3, "primary")) == "done"
    assert one.take("m1", wanted(1)) == "known", "replayed"

    assert given_one.flips == ["fallback", "primary"]
    assert given_one.told == [("fallback", 1, "told"), ("primary", 3, "told")]


def test_a_lower_epoch_and_another_endpoint_are_refused(given_one: Given) -> None:
    one = given_one.receiver
    one.take("m1", wanted(7, "primary"))

    assert refused(one, "m2", wanted(6)) == 409
    assert refused(one, "m3", wanted(8, endpoint="b")) == 404
    assert given_one.flips == []


def test_it_goes_back_by_itself_when_the_fallback_expires(given_one: Given) -> None:
    one = given_one.receiver
    one.take("m1", wanted(1, for_s=60))
    given_one.now += 59
    one.expire()
    assert given_one.flips == ["fallback"]
    given_one.now += 1
    one.expire()
    one.expire()

    assert given_one.flips == ["fallback", "primary"]
    assert given_one.told[-1] == ("primary", 1, "expired")


def test_a_fallback_that_arrives_after_its_time_is_none(given_one: Given) -> None:
    given_one.now += 100

    assert given_one.receiver.take("m1", wanted(1, for_s=60)) == "done"
    assert given_one.flips == []


def test_what_nginx_did_not_do_is_not_said_to_be_done(given_one: Given) -> None:
    one = given_one.receiver
    given_one.broken = True
    assert refused(one, "m1", wanted(1)) == 503
    given_one.broken = False
    assert one.take("m1", wanted(1)) == "done"
    given_one.now, given_one.broken = NOW + 61, True
    one.expire()
    given_one.broken = False
    one.expire()

    assert given_one.flips == ["fallback", "primary"]


def test_a_restarted_receiver_knows_what_holds_until_when_and_what_it_has_seen(given_one: Given) -> None:
    given_one.receiver.take("m1", wanted(5, for_s=60))
    again = given_one.again()
    assert (again.held.route, again.held.epoch) == ("fallback", 5)
    assert again.take("m1", wanted(5)) == "known"
    assert refused(again, "m2", wanted(4)) == 409
    given_one.now += 61

    assert given_one.again().held.route == "primary"


def test_a_secret_file_that_holds_none_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    file = tmp_path / "hook.secret"
    file.write_text(SECRET + "\n")
    assert read_secret(file) == KEY
    for bad in ("canary", "whsec_canary!", "whsec_Y2FuYXJ5", "whsk_" + SECRET[6:]):
        file.write_text(bad)
        with pytest.raises(ValueError, match=r"hook\.secret") as caught:
            read_secret(file)
        assert "canary" not in str(caught.value)


def test_it_stands_alone() -> None:
    tree = ast.parse(Path(receiver.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


# A real nginx


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("receiver")
    with upstream("primary") as one, upstream("fallback") as two, receiving(folder, one, two) as made:
        yield made


def post(scene: Scene, epoch: int, route: Route, *, for_s: float = 60.0, body: bytes | None = None) -> int:
    data = {
        "endpoint": "credit",
        "epoch": epoch,
        "route": route,
        "expires_at": iso_time(int((time.time() + for_s) * 1000)),
    }
    body = body or json.dumps({"type": "palisade.endpoint.wanted", "timestamp": iso_time(T0), "data": data}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", scene.ready["port"], timeout=10)
    try:
        connection.request("POST", "/", body, signed(body, f"m{epoch}", time.time()))
        return connection.getresponse().status
    finally:
        connection.close()


def test_once_it_has_answered_every_new_connection_is_served_by_the_new_upstream(scene: Scene) -> None:
    assert scene.asked() == "primary"
    for epoch in range(1, 7):
        route: Route = "fallback" if epoch % 2 else "primary"
        assert post(scene, epoch, route) == 200
        assert {scene.asked() for _ in range(30)} == {route}


def test_nobody_is_turned_away_while_it_flips(scene: Scene) -> None:
    stop, answers = threading.Event(), []

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(scene.asked())

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        for epoch in range(11, 15):
            assert post(scene, epoch, "fallback" if epoch % 2 else "primary") == 200
    finally:
        stop.set()
        asking.join(20)
    assert set(answers) == {"primary", "fallback"}


def test_a_fallback_that_expires_is_left_without_another_word(scene: Scene) -> None:
    assert post(scene, 20, "fallback", for_s=0.5) == 200
    deadline = time.monotonic() + 60
    while scene.held()["route"] != "primary":
        assert time.monotonic() < deadline
    assert {scene.asked() for _ in range(30)} == {"primary"}


def test_strangers_and_giants_are_refused(scene: Scene) -> None:
    assert post(scene, 30, "fallback", body=b"x" * 20_001) == 413
    assert post(scene, 30, "fallback", body=b"{}") == 400
    assert post(scene, 30, "fallback", body=b'{"type": "another.type"}') == 200, "for somebody else: ignored"
    connection = http.client.HTTPConnection("127.0.0.1", scene.ready["port"], timeout=10)
    connection.request("POST", "/", b"{}", {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,x"})
    assert connection.getresponse().status == 401
    connection.close()
    assert scene.asked() == "primary"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel takes nginx along on Linux alone")
def test_nothing_is_left_of_it_after_a_kill_9(tmp_path: Path) -> None:
    with upstream("primary") as primary, receiving(tmp_path, primary, primary) as killed:
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.wait(20)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{killed.ready['nginx_pid']}").exists():
            assert time.monotonic() < deadline, "nginx outlives its receiver"
            time.sleep(0.02)


def test_it_ends_with_its_standard_input_and_has_told_each_flip(tmp_path: Path) -> None:
    with upstream("primary") as one, upstream("fallback") as two, receiving(tmp_path, one, two) as made:
        assert post(made, 1, "fallback") == 200
        lines = made.stop()
    assert [(line["event"], line["route"], line["epoch"], line["why"]) for line in lines] == [
        ("route", "fallback", 1, "told")
    ]
