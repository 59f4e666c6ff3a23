"""The factory: keeps as many workers in batch systems as the managers can use.

Talks to managers only through the "demand" and "retire" questions and through their advertisements; nothing of the
manager's insides is known here, and `taskvine_core` never imports this package.
"""

from __future__ import annotations
