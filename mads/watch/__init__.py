"""`mads watch`: a view of a run in the terminal, read from its folder while it is written, or afterwards (docs/logging.md)."""
