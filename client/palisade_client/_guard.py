"""Guard: what a service wraps around its model, so that it is watched and can be acted for."""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from types import CodeType
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack, cast

from palisade_client._call import Call
from palisade_client._caller import CallerAuth, caller_var
from palisade_client._clock import Clock, SystemClock
from palisade_client._emitter import Emitter, KafkaOptions, connect
from palisade_client._errors import PredictTimeout
from palisade_client._fallback import NO_ANSWER, Fallback
from palisade_client._forking import on_fork
from palisade_client._keys import KeySpec, producer_key, public_keys
from palisade_client._live import Identity, Live
from palisade_client._log import log_fault, logger
from palisade_client._pool import Expired, Pool, PoolFull, Task
from palisade_client._redact import Redactor, Rules, redaction_key
from palisade_client._transport import KafkaTransport, Transport
from palisade_client._wire import clean_id

MAX_INFLIGHT = 32
_CALLER_WORDS = frozenset({"caller", "caller_auth"})


class GuardOptions(TypedDict, total=False):
    """Where a Guard connects and what it trusts; each has a default.

    `bootstrap`: Kafka's address (env `PALISADE_BOOTSTRAP`). `directive_keys`: the public keys whose directives are
    followed, base64 separated by commas or a file of them (env `PALISADE_DIRECTIVE_KEYS`); without any the Guard only
    observes. `sensitive`: features that must not leave the process as they are, `{"ssn": "drop", "email": "hash",
    "age": {"bucket": 10}}`; `sensitive_key_file`: the secret of `hash`, without which such a rule is refused here (env
    `PALISADE_REDACTION_KEY`: the file, or its 64 hex digits). `producer_key`: PEM file of the Ed25519 key that signs reports (env `PALISADE_PRODUCER_KEY`).
    `kafka_settings`: librdkafka settings such as SASL. `allow_plaintext`: without TLS also off this machine, which is
    refused otherwise (env `PALISADE_ALLOW_PLAINTEXT=1`). `kill_file`: while this file exists nothing is enforced (env
    `PALISADE_KILL_FILE`). `artifact_digest`: of the model loaded. `sample`: share of predictions emitted, in (0, 1].
    `client_errors`: exceptions of the model that are the caller's fault: raised as they are, no failure, no fallback.
    `emitter`: shared between Guards. `clock`, `transport`: for tests, see `palisade_client.testing`.
    """

    max_inflight: int
    bootstrap: str | None
    directive_keys: KeySpec | None
    producer_key: str | os.PathLike[str] | None
    kafka_settings: Mapping[str, Any] | None
    allow_plaintext: bool
    kill_file: str | os.PathLike[str] | None
    artifact_digest: str | None
    sample: float
    sensitive: Rules | None
    sensitive_key_file: str | os.PathLike[str] | None
    client_errors: tuple[type[Exception], ...]
    emitter: Emitter | None
    clock: Clock
    transport: Transport | None


Predict = TypeVar("Predict", bound=Callable[..., Any])
Result = TypeVar("Result")


class Guard:
    """Guards one endpoint in one serving process; thread-safe, and made for prefork servers.

    As a decorator of `def predict(features, *, caller, ...)`, plain or async, or by `call` and `acall`. It reports,
    emits each prediction, follows the endpoint's signed directive, and falls back by itself on exceptions, and on
    timeouts when `timeout_s` is given: then a plain `predict` runs in a pool of `max_inflight` daemon threads, and a
    full pool is answered with the fallback at once. `fallback` is a value, a function of the features, or a model.

    Raises into the caller: `CallerLimited`, the model's own exception when no fallback answers, `PredictTimeout`
    likewise; never a fault of its own. ValueError, TypeError or OSError at construction for wrong options or keys.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        fallback: Any = None,
        version: str = "default",
        timeout_s: float | None = None,
        **options: Unpack[GuardOptions],
    ) -> None:
        unknown = set(options) - set(GuardOptions.__annotations__)
        if unknown:
            raise TypeError(f"Guard has no option {', '.join(sorted(unknown))}")
        sample = options.get("sample", 1.0)
        if not 0 < sample <= 1 or (timeout_s is not None and timeout_s <= 0) or options.get("max_inflight", 1) < 1:
            raise ValueError("sample must be in (0, 1], timeout_s above 0, max_inflight at least 1")
        kill_file = options.get("kill_file") or os.environ.get("PALISADE_KILL_FILE")
        self._clock: Clock = options.get("clock") or SystemClock()
        self._fallback_source = fallback
        self._timeout_s = timeout_s
        self._options = options
        self._client_errors = options.get("client_errors", ())
        self._identity = Identity(
            endpoint=clean_id(endpoint),
            version=clean_id(version),
            artifact_digest=options.get("artifact_digest"),
            keys=public_keys(options.get("directive_keys") or os.environ.get("PALISADE_DIRECTIVE_KEYS")),
            signer=producer_key(options.get("producer_key") or os.environ.get("PALISADE_PRODUCER_KEY")),
            kill_file=os.fspath(kill_file) if kill_file else None,
            sample=sample,
            redactor=_redactor(options),
        )
        if not self._identity.keys:
            logger.warning("%s: NO DIRECTIVE KEYS: this Guard only observes, it will follow nothing", endpoint)
        Fallback(fallback, self._clock)  # a fallback that cannot be used is an error here, not at the first failure
        self._kafka = _kafka_options(options)
        if options.get("transport") is None:
            self._kafka.check()
        self._emitter = options.get("emitter") or Emitter(
            self._kafka.bootstrap,
            kafka_settings=self._kafka.settings,
            allow_plaintext=self._kafka.allow_plaintext,
            transport=options.get("transport"),
        )
        if self._identity.redactor is not None:
            self._emitter.redact(self._identity.endpoint, self._identity.redactor)
        self._live: Live | None = None
        self._begin_process()
        on_fork(self, Guard._begin_process)
        atexit.register(_close_at_exit, weakref.ref(self))

    def _begin_process(self) -> None:
        old = self._live
        if old is not None and isinstance(old.transport, KafkaTransport):
            old.transport.abandon()
        max_inflight = self._options.get("max_inflight", MAX_INFLIGHT)
        self._lock = threading.Lock()
        self._pool = Pool(max_inflight, f"palisade-predict-{self._identity.endpoint}")
        self._places = threading.Semaphore(max_inflight)
        self._live = None
        self._closed = False

    @property
    def endpoint(self) -> str:
        return self._identity.endpoint

    @property
    def emitter(self) -> Emitter:
        return self._emitter

    def start(self) -> Guard:
        """Connects and starts reporting now instead of at the first call; after a fork, in the child."""
        if self._live is None:
            self._start()
        return self

    def _start(self) -> Live:
        with self._lock:
            if self._live is None:
                options = self._options
                transport = options.get("transport") or connect(self._kafka, predictions=False)
                fallback = Fallback(self._fallback_source, self._clock, trace=self._identity.redactor is None)
                live = Live(self._identity, fallback, self._emitter, transport, self._clock)
                try:
                    live.start()
                except RuntimeError:  # the process may start no more threads: the call is answered all the same
                    log_fault("the threads of the Guard could not be started")
                self._live = live
            return self._live

    def flush(self, timeout_s: float = 2.0) -> None:
        """Does what is due, writes a report and sends all waiting predictions; waits at most `timeout_s` twice."""
        live = self._live or self._start()
        live.step(report=True)
        live.transport.flush(timeout_s)
        self._emitter.flush(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Writes the last report and predictions and stops the threads; waits for Kafka at most `timeout_s` in all.

        Later calls are answered, but not watched any more.
        """
        live = self._live
        if live is None or self._closed:
            return
        self._closed = True
        live.close(timeout_s / 2)
        if self._options.get("emitter") is None:
            self._emitter.close(timeout_s / 2)

    def status(self) -> dict[str, Any]:
        """For a health page: endpoint, guard_id, epoch, killed, limits, fallback_ok, directives refused, in_flight."""
        live = self._live or self._start()
        return {
            "endpoint": self.endpoint,
            "guard_id": live.guard_id,
            "epoch": live.state.epoch,
            "killed": live.killed,
            "fallback_ok": live.fallback.ok,
            "limited_callers": len(live.orders.limits),
            "limit_share": live.state.share,
            "directives_refused": dict(live.state.refusals),
            "in_flight": live.counts.in_flight,
        }

    # -- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, predict: Predict) -> Predict:
        """Decorates `predict(features, ...)`; `caller` and `caller_auth` are passed on if it takes them."""
        is_async, takes = _traits(predict)

        def guarded(
            features: Any,
            *args: Any,
            caller: str | None = None,
            caller_auth: CallerAuth | None = None,
            **kwargs: Any,
        ) -> Any:
            who = _who(caller, caller_auth)
            _pass_on(takes, who, kwargs)
            return (self._acall if is_async else self._call)(predict, features, who, args, kwargs)

        async def awaited(features: Any, *args: Any, **kwargs: Any) -> Any:
            return await guarded(features, *args, **kwargs)

        return cast(Predict, functools.wraps(predict)(awaited if is_async else guarded))

    def call(
        self,
        predict: Callable[..., Any],
        features: Any,
        *,
        caller: str | None = None,
        caller_auth: CallerAuth | None = None,
        **kwargs: Any,
    ) -> Any:
        """`predict(features, **kwargs)`, guarded; `caller` and `caller_auth` are passed on if it names them. Awaitable if `predict` is async.

        `caller` defaults to the middleware's `current_caller()`.
        A caller named here is `claimed`, unless it is the middleware's own or `caller_auth` says `verified`.
        """
        who, (is_async, takes) = _who(caller, caller_auth), _traits(predict)
        _pass_on(takes, who, kwargs)
        return (self._acall if is_async else self._call)(predict, features, who, (), kwargs)

    def acall(
        self,
        predict: Callable[..., Any],
        features: Any,
        *,
        caller: str | None = None,
        caller_auth: CallerAuth | None = None,
        **kwargs: Any,
    ) -> Awaitable[Any]:
        """Like `call` without blocking the event loop: awaits an async `predict`, runs a plain one in the pool."""
        who = _who(caller, caller_auth)
        _pass_on(_traits(predict).takes, who, kwargs)
        return self._acall(predict, features, who, (), kwargs)

    def _call(
        self,
        predict: Callable[..., Any],
        features: Any,
        who: tuple[str, CallerAuth],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = Call(self._live or self._start(), features, who[0], who[1])
        if call.route == "fallback" and (value := call.divert()) is not NO_ANSWER:
            return value
        try:
            if self._timeout_s is None:
                value = predict(features, *args, **kwargs)
            else:
                value = self._pool.call(lambda: predict(features, *args, **kwargs), self._timeout_s)
        except BaseException as error:  # noqa: BLE001 - raised again unless the fallback answers
            return self._failed(call, error)
        return call.answer(value)

    async def _acall(
        self,
        predict: Callable[..., Any],
        features: Any,
        who: tuple[str, CallerAuth],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = Call(self._live or self._start(), features, who[0], who[1])
        if call.route == "fallback" and (value := call.divert()) is not NO_ANSWER:
            return value
        try:
            value = await self._awaited(predict, lambda: predict(features, *args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised again unless the fallback answers
            return self._failed(call, error)
        return call.answer(value)

    def _failed(self, call: Call, error: BaseException) -> Any:
        """The model raised, was late or found no place: the fallback's answer, else its error is raised."""
        if isinstance(error, Expired | PoolFull):
            late = PredictTimeout(self.endpoint, self._timeout_s, pool_full=isinstance(error, PoolFull))
            return call.recover("timeout", late)
        if isinstance(error, self._client_errors) or not isinstance(error, Exception):
            call.give_up()
            raise error
        return call.recover("error", error)

    async def _awaited(self, predict: Callable[..., Any], run: Callable[[], Any]) -> Any:
        """The answer of `predict`; Expired after `timeout_s` without waiting for its cancellation, PoolFull at once."""
        if not _traits(predict).is_async:
            return await self._in_pool(run)
        if self._timeout_s is None:
            return await run()
        if not self._places.acquire(blocking=False):
            raise PoolFull
        future = asyncio.ensure_future(run())
        future.add_done_callback(self._leave_place)
        return await self._in_time(future)

    async def _in_time(self, future: asyncio.Future[Result]) -> Result:
        try:
            done, _ = await asyncio.wait({future}, timeout=self._timeout_s)
        finally:
            if not future.done():
                future.cancel()
        if not done:
            raise Expired
        return future.result()

    async def _in_pool(self, run: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Task] = loop.create_future()

        def settle(task: Task) -> None:
            if not future.cancelled():
                future.set_result(task)

        def then(task: Task) -> None:
            try:
                loop.call_soon_threadsafe(settle, task)
            except RuntimeError:
                log_fault("a model answered after its event loop was closed")

        self._pool.submit(run, then)
        task = await self._in_time(future)
        if task.error is not None:  # not as the future's exception: that may not be StopIteration
            raise task.error
        return task.value

    def _leave_place(self, future: asyncio.Future[Any]) -> None:
        self._places.release()
        if not future.cancelled():
            future.exception()  # taken, so that asyncio does not complain about one that came too late


def _kafka_options(options: GuardOptions) -> KafkaOptions:
    return KafkaOptions(options.get("bootstrap"), options.get("kafka_settings"), options.get("allow_plaintext", False))


def _redactor(options: GuardOptions) -> Redactor | None:
    """The rules of `sensitive`; None where there are none. Raises ValueError or OSError."""
    rules = options.get("sensitive")
    return Redactor(rules, redaction_key(options.get("sensitive_key_file"))) if rules else None


def _who(caller: str | None, auth: CallerAuth | None) -> tuple[str, CallerAuth]:
    known = caller_var.get()
    if caller is None:
        return known.id, auth or known.auth
    return caller, auth or (known.auth if known.id == caller else "claimed")


class _Traits(NamedTuple):
    """What must be known of a model's function: is it async, and which of `caller`, `caller_auth` does it name?"""

    is_async: bool
    takes: frozenset[str]


def _traits(predict: Callable[..., Any]) -> _Traits:
    code = getattr(predict, "__code__", None)
    if code is not None and not hasattr(predict, "__wrapped__"):
        return _traits_of_code(code)
    call = getattr(predict, "__call__", None)  # noqa: B004 - an object whose call is async
    is_async = inspect.iscoroutinefunction(predict) or inspect.iscoroutinefunction(call)
    try:
        return _Traits(is_async, _CALLER_WORDS & set(inspect.signature(predict).parameters))
    except (TypeError, ValueError):  # a builtin without a signature
        return _Traits(is_async, frozenset())


@functools.lru_cache(maxsize=1024)
def _traits_of_code(code: CodeType) -> _Traits:
    """By code object, which all lambdas of one line share, so that one made for each call costs no inspection."""
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return _Traits(bool(code.co_flags & inspect.CO_COROUTINE), _CALLER_WORDS & set(names))


def _pass_on(takes: frozenset[str], who: tuple[str, CallerAuth], kwargs: dict[str, Any]) -> None:
    if "caller" in takes:
        kwargs["caller"] = who[0]
    if "caller_auth" in takes:
        kwargs["caller_auth"] = who[1]


def _close_at_exit(reference: weakref.ref[Guard]) -> None:
    guard = reference()
    if guard is not None:
        guard.close()
