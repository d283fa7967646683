"""Repairs of a trained head: of a run's network, and of the last layer of a saved model."""
