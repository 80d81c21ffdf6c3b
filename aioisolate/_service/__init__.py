"""The parts of an `Isolator`: jobs, their queue, sources of children, and statistics."""
