"""Generated from inference.proto and admin.proto by protos/generate.py."""
