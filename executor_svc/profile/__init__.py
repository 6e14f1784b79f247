"""Profiles of steps: the spans that sessions record, and the device's own trace beside them."""
