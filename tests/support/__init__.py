"""Fakes, toy models and servers that several tests use."""
