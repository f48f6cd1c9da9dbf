"""How a subject is taught to a base: one folder per method, the same files in each."""
