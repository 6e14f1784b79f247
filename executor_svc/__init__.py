"""The executor: holds tensors and decides nothing."""
