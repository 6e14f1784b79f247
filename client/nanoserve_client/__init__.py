"""Python client library of nanoserve."""
