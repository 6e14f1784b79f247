"""Generated from worker.proto by protos/generate.py."""
