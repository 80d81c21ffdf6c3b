"""Constants that a parent and its child share, except those of `frames`."""

from __future__ import annotations

import signal

__all__ = ["GO", "MARK_AT", "PID_AT", "SCRATCH_START", "STACK_SIGNAL"]

# The layout of the scratch file: the stack text of a crash or deadline; at PID_AT the process id of
# a fork server's child, if its parent requested that; at MARK_AT the byte that marks the start of
# fn, where files can't be sealed; results.
SCRATCH_START = 1 << 20
MARK_AT = SCRATCH_START - 1
PID_AT = SCRATCH_START - 32

# The parent sends this byte to a child that has engaged the required layers.
GO = b"G"

# Makes the child dump its Python stack into the scratch file. This is SIGURG because few programs
# use it, and debuggers and supervisors pass it on (Go uses it for the same reasons). By default it
# is ignored, so it does not harm a program that fn has exec'ed.
STACK_SIGNAL = signal.SIGURG
