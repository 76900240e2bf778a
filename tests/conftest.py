"""For all tests: hypothesis neither watches the clock, which a busy machine would fail, nor rolls new dice."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
