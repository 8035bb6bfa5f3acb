"""Where a connection was checked out."""

from __future__ import annotations

import traceback
from types import FrameType

DEPTH = 12
"""Frames that are kept: the innermost ones."""


def stack_of(frame: FrameType) -> traceback.StackSummary:
    """The stack of `frame`. The source lines are read only when it is printed."""
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=DEPTH, lookup_lines=False)
    stack.reverse()
    return stack
