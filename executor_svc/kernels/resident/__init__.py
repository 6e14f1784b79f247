"""The decoder layers of a decode step of one row, in one launch: see stack.py."""
