"""Rules of transfers that trickle: measured against others, never judged without a size."""

from __future__ import annotations

from taskvine_core.constants import VINE_TEMP
from taskvine_core.manager.outliers import TransferRate
from taskvine_core.manager.records import MB, FileRecord, Transfer
from taskvine_core.manager.tuning import Tuning
from taskvine_core.model.files import FileDecl


def transfer(size_bytes: int, started: float = 0.0) -> Transfer:
    file = FileRecord(FileDecl("temp-rnd-a", VINE_TEMP, size=size_bytes))
    return Transfer(1, "temp-rnd-a", file, 1, 2, started)


def test_a_transfer_is_late_when_it_is_slower_than_the_mean_by_the_outlier_factor() -> None:
    tuning = Tuning()
    tuning.set("min-transfer-timeout", 1)
    rate = TransferRate(tuning)
    rate.finished(100 * MB, 1.0)
    assert not rate.is_outlier(transfer(100 * MB), now=9.9)
    assert rate.is_outlier(transfer(100 * MB), now=10.1)


def test_no_transfer_is_late_before_the_minimum_timeout() -> None:
    tuning = Tuning()
    rate = TransferRate(tuning)
    rate.finished(1000 * MB, 1.0)
    assert not rate.is_outlier(transfer(MB), now=59.0)
    assert rate.is_outlier(transfer(MB), now=61.0)


def test_before_any_measurement_the_default_rate_counts() -> None:
    tuning = Tuning()
    rate = TransferRate(tuning)
    assert not rate.is_outlier(transfer(100 * MB), now=999.0)
    assert rate.is_outlier(transfer(100 * MB), now=1001.0)


def test_an_unknown_size_is_never_late() -> None:
    assert not TransferRate(Tuning()).is_outlier(transfer(-1), now=1e9)


def test_nonsense_measurements_are_not_learned() -> None:
    tuning = Tuning()
    rate = TransferRate(tuning)
    for wall_s in (0.0, -1.0, float("nan"), float("inf")):
        rate.finished(100 * MB, wall_s)
    rate.finished(10, 1.0)
    assert rate.limit_s(10 * MB) == 100.0
