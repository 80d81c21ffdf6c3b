"""Shared, copy-on-write and protected memory."""
