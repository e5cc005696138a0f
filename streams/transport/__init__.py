"""Kafka at the speed of columns: one Faust message is a run of consecutive offsets of one partition.

The package is empty on purpose, so that `streams.transport.outbox` and `streams.transport.settings` do not import Faust.
"""
