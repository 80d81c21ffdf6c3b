"""Fork servers: small or frozen processes that fork a child for each call."""
