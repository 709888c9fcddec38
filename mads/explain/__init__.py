"""Why a sample was or was not chosen: a round of a run computed again from the run folder."""
