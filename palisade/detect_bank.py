"""Which detectors run, with which parameters: the bank of each partition, put together from the configuration."""

from __future__ import annotations

from detectors.bank import Bank, place_of_block, place_of_label, place_of_report
from detectors.base import Budget, part_of
from detectors.profile import Profile
from detectors.registry import block_detectors, fit, labelled_detectors, report_detectors
from palisade.settings import Settings
from responders.signing import Keyring
from schemas.topics import LABELLED, PREDICTIONS
from streams.detect import PartitionLog
from streams.labelled_log import EndpointLabels, LabelledLog
from streams.prediction_log import PredictionLog, ProfileSource
from streams.profiles import ProfileTopic
from streams.report_log import EndpointReports, ReportLog
from streams.transport.run import TP

DEFAULT_EVENTS_PER_DAY = 1_000_000.0
"""Stands in where an endpoint's configuration gives none, until feature drift has measured it: about 12 a second."""


class PartitionLogs:
    """Opens the log of a partition, cold: `DetectRole` restores its state."""

    def __init__(self, settings: Settings, profiles: ProfileTopic, partitions: int) -> None:
        self._policy = settings.policy
        self._endpoints = {endpoint.name: endpoint for endpoint in settings.config.endpoints}
        self._operators = Keyring(settings.config.operator_keys)
        self._profiles = profiles
        self._partitions = partitions
        self._recover_for_ms = int(settings.policy.durations.recover_for_s * 1000)

    async def open(self, tp: TP) -> PartitionLog:
        """The log of a partition of predictions, reports or labels."""
        if tp.topic == LABELLED:
            return self._labels(tp.partition)
        return self._predictions(tp.partition) if tp.topic == PREDICTIONS else self._reports(tp.partition)

    def _predictions(self, partition: int) -> PredictionLog:
        detectors = block_detectors(self._policy)

        def switch_on(endpoint: str, version: str, profile: Profile, learned: bool) -> None:
            config = self._endpoints.get(endpoint)
            budget = Budget.of(config, DEFAULT_EVENTS_PER_DAY)
            tier = "fast" if config is None else config.outliers
            fit(detectors, part_of(endpoint, version), profile, budget, learned=learned, outliers=tier)

        return PredictionLog(
            partition,
            self._partitions,
            Bank(detectors, place_of_block, self._recover_for_ms),
            switch_on,
            self._endpoints.__contains__,
            ProfileSource(self._profiles.get, self._profiles.peek, lambda: self._profiles.active(partition)),
            self._operators,
        )

    def _reports(self, partition: int) -> ReportLog:
        def make(endpoint: str) -> EndpointReports:
            detectors, states = report_detectors({endpoint: self._endpoints[endpoint]}, self._recover_for_ms)
            return EndpointReports(Bank(detectors, place_of_report, self._recover_for_ms), states)

        return ReportLog(partition, self._partitions, self._endpoints, make)

    def _labels(self, partition: int) -> LabelledLog:
        def make(endpoint: str) -> EndpointLabels:
            detectors = labelled_detectors({endpoint: self._endpoints[endpoint]}, self._recover_for_ms)
            return EndpointLabels(Bank(detectors, place_of_label, self._recover_for_ms))

        return LabelledLog(partition, self._partitions, self._endpoints, make)
