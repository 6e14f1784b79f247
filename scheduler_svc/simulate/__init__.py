"""`nanoserve simulate`: the real scheduler core against the virtual executor's cost model, in virtual time.

A trace says what arrives when (`trace.py`, `public_traces.py`), a profile what a step costs (`profile.py`), and
`simulator.py` plays one against the other; nothing in it waits, so hours of serving take seconds.
"""
