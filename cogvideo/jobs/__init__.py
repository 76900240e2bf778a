"""Accepted requests until their files exist: queue, worker, store and job state."""
