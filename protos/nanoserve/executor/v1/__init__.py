"""Generated from executor.proto by protos/generate.py."""
