"""The contracts: what travels on Kafka, what lies in ClickHouse, what users write in YAML.

The pydantic models are the judge. Hot paths may decode faster, but only to say yes (`streams.decode`).
"""
