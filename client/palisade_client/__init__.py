"""What a serving process embeds to be watched and protected by Palisade: Guard, Emitter and an ASGI middleware."""

from palisade_client._answered import Answered, last_answer
from palisade_client._caller import Caller, current_caller
from palisade_client._emitter import Emitter
from palisade_client._errors import CallerLimited, PalisadeError, PredictTimeout
from palisade_client._guard import Guard
from palisade_client._plaintext import PlaintextRefused
from palisade_client._request_id import name_request
from palisade_client.asgi import PalisadeMiddleware

__all__ = [
    "Answered",
    "Caller",
    "CallerLimited",
    "Emitter",
    "Guard",
    "PalisadeError",
    "PalisadeMiddleware",
    "PlaintextRefused",
    "PredictTimeout",
    "current_caller",
    "last_answer",
    "name_request",
]
