"""Here so that the harnesses beside it can be imported by the tests in the folders below."""
