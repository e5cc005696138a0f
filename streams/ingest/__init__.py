"""Role ingest: requests and responses of services in any language become predictions and reports."""
