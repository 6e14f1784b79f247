"""The internal contract, between a scheduler and an executor."""
