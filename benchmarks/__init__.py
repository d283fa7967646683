"""Benchmarks: every number beside its peer, its floor and the error it was checked to."""
