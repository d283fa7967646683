"""Files of users and of runs, read with one-line errors and without running code that they may hold."""
