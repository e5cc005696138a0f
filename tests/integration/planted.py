"""The command `palisade` with a long piece of work planted: every update of a bank costs 200 ms of processor more.

What the flood's check must find: `python -m tests.integration.planted worker detect ...`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from detectors.bank import Bank, Concluded
from palisade.cli.main import main
from schemas.blocks import Block

PLANTED_S = 0.2

_update = Bank.update


def _planted(bank: Bank[Block], blocks: Sequence[Block]) -> Concluded:
    until = time.thread_time() + PLANTED_S
    while time.thread_time() < until:
        pass
    return _update(bank, blocks)


if __name__ == "__main__":
    Bank.update = _planted  # type: ignore[method-assign,assignment]
    main()
