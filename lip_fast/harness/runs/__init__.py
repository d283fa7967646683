"""One run: what its settings come to, its folder and checkpoints, its records, what it writes in the end."""
