"""The scheduler: decides everything and holds no tensor."""
