"""Training jobs and sampling in one process; no Ray in it."""
