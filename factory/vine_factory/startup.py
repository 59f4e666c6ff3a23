"""How long it takes from the submission of a job to a connected worker.

Owns the recent samples of one pool. Pure.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from vine_factory import defaults


class StartupTimes:
    """The last start-ups. ``given_s``: what the site says instead, 0 = learn."""

    def __init__(self, given_s: float = 0.0) -> None:
        self.given_s = given_s
        self._samples: deque[float] = deque(maxlen=defaults.STARTUP_SAMPLES)

    def note(self, seconds: float) -> None:
        """One job has connected so many seconds after it was created."""
        self._samples.append(max(0.0, seconds))

    def usual_s(self) -> float | None:
        """The median, None while too little is known."""
        if self.given_s > 0:
            return self.given_s
        return median(self._samples) if len(self._samples) >= defaults.STARTUP_MIN_SAMPLES else None
