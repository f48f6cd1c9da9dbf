"""What sharing a base is worth: our engine against the loops that diffusers documents."""
