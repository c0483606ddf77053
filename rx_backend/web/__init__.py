"""Token streams as responses of web services."""
