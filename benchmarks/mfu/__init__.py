"""The MFU table of a node: see benchmarks/mfu/__main__.py."""
