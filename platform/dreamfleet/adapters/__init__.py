"""Adapters: what training makes, how it sits in a base, and how it is stored."""
