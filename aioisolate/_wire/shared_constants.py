"""Constants that a parent and its child share, besides the frames: see `frames`."""

from __future__ import annotations

import signal

__all__ = ["GO", "MARK_AT", "PID_AT", "SCRATCH_START", "STACK_SIGNAL"]

# The scratch file begins with room for the text of a crash; then come the process id of a fork
# server's child, if its parent wants that; the mark of a quiet start, where it is a byte and no
# seal; and results.
SCRATCH_START = 1 << 20
MARK_AT = SCRATCH_START - 1
PID_AT = SCRATCH_START - 32

# What the parent sends once the layers that a child has engaged are those that it wants.
GO = b"G"

# Has the child dump its Python stack into the scratch file. SIGURG because its default is to be
# ignored, nothing in practice uses it, and debuggers and supervisors pass it on (Go picked it for
# the same reasons); if fn has exec'ed another program by then, the signal does no harm there.
STACK_SIGNAL = signal.SIGURG
