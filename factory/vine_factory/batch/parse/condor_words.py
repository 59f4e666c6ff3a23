"""What HTCondor's tools and bindings say when something is wrong, and whether asking again can help.

Owns the recognition of words. Pure. HTCondor has no error numbers for this: the words are all there is.
"""

from __future__ import annotations

import re

_NO_ANSWER = re.compile(
    r"connect|cedar:|secman:|locate|can't find address|communicat|timed? ?out|fetch ads|authenticat|unknown error"
    r"|not responding|connection|network", re.IGNORECASE)
_COMMIT_WITHOUT_REASON = re.compile(r"commit (transaction|job submission into the queue)[.,:\s]*$", re.IGNORECASE)
_LIMITS = {"-2": "MAX_JOBS_SUBMITTED", "-3": "MAX_JOBS_PER_OWNER", "-4": "MAX_JOBS_PER_SUBMISSION"}
_LIMIT_NUMBER = re.compile(r"Schedd says (-\d)\b")
_RANGE = re.compile(r"\s*(\d+)\.(\d+)(?: - (\d+)\.(\d+))?\s*", re.ASCII)
_NOT_THERE = re.compile(
    r"not found|couldn't find/remove all|there are no jobs|already (marked|been|in)|not in .*state|does not exist"
    r"|permanently removed|not marked for removal", re.IGNORECASE)


def refused(said: str) -> bool:
    """Whether a failed submission was refused (there is no job), rather than lost (nobody knows)."""
    return not _NO_ANSWER.search(said) and not _COMMIT_WITHOUT_REASON.search(said)


def stale_session(said: str) -> bool:
    """Whether a daemon that was restarted refused a client's old security session, unread."""
    return "session id" in said and "SECMAN:2004" in said


def explained(said: str) -> str:
    """The words, with the name of a limit that they only number."""
    number = _LIMIT_NUMBER.search(said)
    limit = _LIMITS.get(number[1]) if number else None
    return f"{said} ({limit} of this schedd is reached)" if limit else said


def submitted_ids(printed: str) -> list[str]:
    """Numbers of jobs from what ``condor_submit -terse`` printed: ``7.0 - 7.3``; [] when it is not that."""
    found = []
    for line in printed.splitlines():
        numbers = _RANGE.fullmatch(line)
        if numbers is None:
            return []
        cluster, first = int(numbers[1]), int(numbers[2])
        last = int(numbers[4]) if numbers[4] else first
        found += [f"{cluster}.{proc}" for proc in range(first, last + 1)]
    return found


def complaints(said: str) -> str:
    """What of a removal's words is a problem: that a job is not there any more is none."""
    return "\n".join(line for line in said.splitlines() if line.strip() and not _NOT_THERE.search(line))
