"""Models of the demo, fitted once for all its tests."""

import pytest

from palisade.demo.data import training_table
from palisade.demo.models import Artifact, train


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    """Of EWR."""
    return train(training_table("EWR"))
