"""What ``benchmarks.device`` runs on a GPU, a part a module; small forms of all of it run on a CPU."""
