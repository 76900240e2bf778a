"""Decoding, sampling, and the three stages of generation."""
