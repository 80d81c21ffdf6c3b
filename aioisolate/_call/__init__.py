"""The parent's side of one call: plan, spawn, supervise, settle."""
