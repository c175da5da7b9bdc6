"""Training (needs torch): data, losses, recipes and the one loop, `fit`."""
