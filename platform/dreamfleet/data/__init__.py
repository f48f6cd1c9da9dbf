"""From photos to subject sets, and from class words to prior sets."""
