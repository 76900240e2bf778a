"""Devices, placement, memory estimates and presets."""
