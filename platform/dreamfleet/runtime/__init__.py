"""Ray start-up, storage URIs, progress and locks. Ray itself is imported inside functions only."""
