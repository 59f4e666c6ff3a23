"""Batch systems behind one contract (`base.BatchSystem`)."""

from __future__ import annotations
