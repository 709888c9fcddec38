"""How processes of a run are started, and the only code that reads or sets environment variables."""
