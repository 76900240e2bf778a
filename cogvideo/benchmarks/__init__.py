"""Measure time and memory against the limits of the hardware."""
