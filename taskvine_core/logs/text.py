"""Small pieces of text that several logs share: time stamps, JSON resources, tame words.

Owns how one value looks. Must not know files or which line it ends up in. Everything here is on the path of
ten thousand tasks per second, hence the caches and the hand-made JSON.
"""

from __future__ import annotations

import time

from taskvine_core.resources import Resources

MICROSECONDS = 1_000_000
MB = 1 << 20
#: Distinct resource tuples are few; a cache past this size is started anew.
MAX_CACHED_RESOURCES = 4096

#: Words by which the published report tool recognises its lines, or part of such a phrase. In free text
#: (commands, notes) they must not stand alone between blanks.
_READER_WORDS = frozenset((
    "cache-invalid", "cache-update", "change:", "complete", "connected", "exhausted", "kill", "listening",
    "manager", "put", "puturl", "puturl_now", "recovery", "removed", "resources", "send", "stdout", "transfer-port",
    "tx", "unlink", "worker-id"))
_NO_BREAK_SPACE = "\u00a0"

_json_cache: dict[tuple[int, ...], str] = {}


class Stamp:
    """Turns times into log stamps; remembers the last one, since facts come in bursts.

    Attributes ``us`` (microseconds since the epoch, text) and ``local`` (date and time with hundredths)
    belong to the time given to ``set`` last.
    """

    def __init__(self) -> None:
        self.us = "0"
        self.local = ""
        self._now = -1.0
        self._hundredth = -1
        self._second = -1
        self._second_text = ""

    def set(self, now: float) -> None:
        """Move to time ``now``, seconds since the epoch."""
        if now == self._now:
            return
        self._now = now
        us = int(now * MICROSECONDS + 0.5)
        self.us = str(us)
        hundredth = us // 10_000
        if hundredth != self._hundredth:
            self._hundredth = hundredth
            second, part = divmod(hundredth, 100)
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(second))
            self.local = f"{self._second_text}.{part:02d}"


def resource_fields(resources: Resources) -> str:
    """The inside of a JSON object, ``"memory":[1,"MB"],…``, without elements that are not set."""
    text = _json_cache.get(resources)
    if text is None:
        cores, memory_mb, disk_mb, gpus = resources
        fields = []
        if memory_mb >= 0:
            fields.append(f'"memory":[{memory_mb},"MB"]')
        if disk_mb >= 0:
            fields.append(f'"disk":[{disk_mb},"MB"]')
        if gpus >= 0:
            fields.append(f'"gpus":[{gpus},"gpus"]')
        if cores >= 0:
            fields.append(f'"cores":[{cores},"cores"]')
        text = ",".join(fields)
        if len(_json_cache) >= MAX_CACHED_RESOURCES:
            _json_cache.clear()
        _json_cache[resources] = text
    return text


def seconds(value_s: float) -> str:
    """A duration in seconds, to the microsecond, as short as possible."""
    return repr(round(value_s * MICROSECONDS) / MICROSECONDS) if value_s else "0"


def megabytes(size_bytes: int) -> str:
    """Bytes as MB with at most six decimals."""
    return repr(round(size_bytes / MB, 6)) if size_bytes else "0"


def microseconds(value_s: float) -> int:
    """Whole microseconds."""
    return int(value_s * MICROSECONDS + 0.5)


def one_line(text: str) -> str:
    """Free text without line breaks."""
    if text.isprintable():
        return text
    return text.replace("\r", "\\r").replace("\n", "\\n")


def tame(text: str) -> str:
    """Free text on one line in which no word can be mistaken for a log reader's key word.

    Text with such a word keeps its look but has no-break spaces, so that it is one word to a reader.
    """
    text = one_line(text)
    if _READER_WORDS.isdisjoint(text.split(" ")):
        return text
    return text.replace(" ", _NO_BREAK_SPACE)


def word(text: str) -> str:
    """A name as one word: blanks and line breaks become underscores, nothing becomes one underscore."""
    if text and " " not in text and text.isprintable():
        return text
    return "_".join(text.split()) or "_"
