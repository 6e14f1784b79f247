"""Between a scheduler's engine process and its API workers."""
