"""Datasets, video reading and the synthetic world."""
