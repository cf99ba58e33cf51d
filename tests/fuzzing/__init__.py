"""Random scenarios, each simulated run checked against invariants. ``python -m tests.fuzzing SEED`` replays one."""
