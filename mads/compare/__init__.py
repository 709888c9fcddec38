"""`mads compare`: strategies x seeds at equal tokens, restartable, with statistics and a page of pictures."""
