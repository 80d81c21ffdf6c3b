"""Memory that is shared, copied on write, or protected."""
