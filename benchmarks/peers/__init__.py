"""The contestants of benchmarks/step.py, and the process that one of them runs in.

Nothing here imports mads, except `ours` and `data`: a peer may live in a Python that does not have it.
"""
