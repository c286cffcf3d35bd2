"""What holds for every test."""

from __future__ import annotations

import hypothesis

# Tests assert behaviour, not times: a busy machine must not turn one red.
hypothesis.settings.register_profile("rheos", deadline=None)
hypothesis.settings.load_profile("rheos")
