"""Faults on purpose: real processes under seeded schedules of faults, every stream compared with its undisturbed run.

It ships with the client, as `nanoserve chaos`, because it needs nothing but what is installed with the services, and
because whoever deploys them wants to see them fail on his own machine. It starts their commands,
talks to their sockets and reads /proc; of their code gaps.py alone loads two modules, to tell how close a choice was.

A profile (profiles/*.toml) says which faults, how often, and what the services are started with. A run is one seeded
schedule of them under several streams. What a run does depends on the profile, the seed and the run's number alone, so
with the same executor, model and flags a failure is played again by these three; when exactly a fault comes is tied
to the tokens received, not to a clock.
"""
