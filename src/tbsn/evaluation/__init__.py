"""Scores of denoisers on pairs of noisy and clean images, and the baselines to stand beside them."""
