"""The audit store: ClickHouse embedded or on a server, its HTTP port on loopback, and the gate for a reader's SQL."""
