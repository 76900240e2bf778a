"""Decoding, sampling and the three stages."""
