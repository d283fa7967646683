"""Measuring: what is checked before it is timed, and the rows that ``lip-fast bench`` runs on any machine."""
