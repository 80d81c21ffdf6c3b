"""The child's side of a call. It imports neither asyncio nor the parent's side."""
