"""Per-sample losses [B]: a batch equals the mean of its samples computed alone."""
