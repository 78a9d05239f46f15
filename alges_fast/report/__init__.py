"""The report of a finished or unfinished experiment, made from the files in its folder alone."""
