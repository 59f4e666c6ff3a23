"""Transfers far slower than others (reference, section 11.5: transfer-outlier-factor, min-transfer-timeout).

Owns the average rate and the limit that follows from it. Must not end transfers: staging does, when asked about each.
A source that is silent is noticed by the receiving side; this is for one that trickles.
"""

from __future__ import annotations

from taskvine_core.manager.records import MB, Transfer
from taskvine_core.manager.tuning import Tuning

#: Weight of the newest transfer in the mean rate.
NEWEST_WEIGHT = 0.1
#: Smaller objects measure latency, not rate.
SMALLEST_MEASURED_BYTES = MB


class TransferRate:
    """Mean rate of finished transfers, and what is too slow compared with it."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._mean_bytes_s = 0.0

    def finished(self, size_bytes: int, wall_s: float) -> None:
        """Learn from a transfer that arrived; nonsense from a peer is not learned from."""
        if size_bytes < SMALLEST_MEASURED_BYTES or not 0 < wall_s < float("inf"):
            return
        rate = size_bytes / wall_s
        mean = self._mean_bytes_s
        self._mean_bytes_s = rate if not mean else mean + NEWEST_WEIGHT * (rate - mean)

    def limit_s(self, size_bytes: int) -> float:
        """Longest time a transfer of this size may take."""
        mean = self._mean_bytes_s or self._tuning.default_transfer_rate_mb_s * MB
        slowest = mean / max(1.0, self._tuning.transfer_outlier_factor)
        return max(self._tuning.min_transfer_timeout_s, max(0, size_bytes) / slowest)

    def is_outlier(self, transfer: Transfer, now: float) -> bool:
        """Has it taken too long? Never, as long as the size is unknown: unknown is not zero."""
        file = transfer.file
        if file is None or file.size < 0:
            return False
        return now - transfer.started > self.limit_s(file.size)
