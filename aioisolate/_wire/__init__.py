"""The protocol between a call's two processes: pure data, no input or output anywhere."""
