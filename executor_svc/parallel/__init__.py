"""Tensor parallelism: one model over several ranks, each a process with a part of every layer. See docs/adr/0010."""
