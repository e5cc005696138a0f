"""river's ADWIN on block means, with a state that is saved as raw numbers.

ADWIN (Bifet & Gavalda 2007) keeps a window as long as its mean holds, and cuts it where the mean changed. It assumes
independent values; means of real rows in real order are not, so a cut alone is no alarm: it must jump further than the
cuts that the training table's own order brings (`AdaptiveTail`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence

from detectors.river_drift import ADWIN
from schemas.errors import StateRefused

DELTA = 0.002
FEED_ROWS = 256
"""Rows gathered into one mean: blocks are of 32 to 256 rows, and the calibration is of means of 256."""
MAX_STANDARD = 10.0
"""Standardised values are clipped here: one wild value moves no mean."""
RECENT = 5
"""ADWIN compares no fewer values than this, so at a cut at least these come from behind the change."""
MAX_STATE_BYTES = 8192
"""A window of 2^40 means takes less."""
CLOCK = 1
"""ADWIN looks for a change at every value."""
_FRAME = struct.Struct("<4sBI")
_MAGIC = b"adw1"
_DIGEST = 16
_RECENT = struct.Struct(f"<B{RECENT}d")


def new_adwin() -> ADWIN:
    """An empty ADWIN of our parameters."""
    return ADWIN(delta=DELTA, clock=CLOCK)  # type: ignore[no-untyped-call]


def save_adwin(adwin: ADWIN) -> bytes:
    """The state of an ADWIN of our parameters: magic, whether it detected at its last value, raw numbers, digest."""
    raw: bytes = adwin._helper.__getstate__()
    body = _FRAME.pack(_MAGIC, bool(adwin.drift_detected), len(raw)) + raw
    return body + hashlib.sha256(body).digest()[:_DIGEST]


def load_adwin(state: bytes) -> ADWIN:
    """Takes back what `save_adwin` gave; raises StateRefused on anything else, before the helper sees a byte of it."""
    body, digest = state[:-_DIGEST], state[-_DIGEST:]
    if len(state) > MAX_STATE_BYTES or hashlib.sha256(body).digest()[:_DIGEST] != digest or len(body) < _FRAME.size:
        raise StateRefused("the state of an adaptive window is not what was saved")
    magic, detected, size = _FRAME.unpack_from(body)
    raw = body[_FRAME.size :]
    if magic != _MAGIC or size != len(raw) or detected > 1:
        raise StateRefused("the state of an adaptive window has another layout")
    adwin = new_adwin()
    expected = adwin._helper.__getstate__()[: struct.calcsize("<dII")]
    if not raw.startswith(expected):
        raise StateRefused("the state of an adaptive window has other parameters")
    try:
        adwin._helper.__setstate__(raw)
    except (ValueError, TypeError, RuntimeError) as error:
        raise StateRefused(f"the adaptive window refuses its state: {error}") from error
    adwin._drift_detected = bool(detected)
    return adwin


class JumpWatch:
    """One ADWIN and the size of the jump at its cuts: the mean of the last `RECENT` values against the window's."""

    __slots__ = ("adwin", "recent")

    def __init__(self, adwin: ADWIN | None = None, recent: Sequence[float] = ()) -> None:
        self.adwin = new_adwin() if adwin is None else adwin
        self.recent = list(recent)

    def update(self, value: float) -> float:
        """|mean now - mean before| if the window was cut at this finite `value`, else 0."""
        if not math.isfinite(value):
            return 0.0
        before = self.adwin.estimation
        self.recent = [*self.recent[1 - RECENT :], value]
        self.adwin.update(value)  # type: ignore[no-untyped-call]
        return abs(sum(self.recent) / len(self.recent) - before) if self.adwin.drift_detected else 0.0

    def undo(self) -> Callable[[], None]:
        """What gives back the state of now; for each batch, so without the checks of bytes that lay elsewhere."""
        raw, detected, recent = self.adwin._helper.__getstate__(), self.adwin.drift_detected, self.recent

        def back() -> None:
            self.adwin, self.recent = new_adwin(), recent
            self.adwin._helper.__setstate__(raw)
            self.adwin._drift_detected = detected

        return back

    def save(self) -> bytes:
        """The last values and the ADWIN's state."""
        filled = [*self.recent, *[0.0] * (RECENT - len(self.recent))]
        return _RECENT.pack(len(self.recent), *filled) + save_adwin(self.adwin)

    @classmethod
    def load(cls, state: bytes) -> JumpWatch:
        """Takes back what `save` gave; raises StateRefused on anything else."""
        if len(state) < _RECENT.size:
            raise StateRefused("the state of an adaptive window is cut short")
        many, *values = _RECENT.unpack_from(state)
        if many > RECENT or not all(map(math.isfinite, values)):
            raise StateRefused("the state of an adaptive window holds a number that is none")
        return cls(load_adwin(state[_RECENT.size :]), values[:many])
