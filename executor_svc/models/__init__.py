"""Model architectures that the executor serves."""
