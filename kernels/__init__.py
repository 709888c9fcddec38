"""Kernels, each with a reference implementation beside it and a test that holds the two equal. Installed as mads.kernels."""
