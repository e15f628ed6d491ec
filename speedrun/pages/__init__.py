"""Pages to look at: the site of the records and the reports of runs, as files that stand alone."""
