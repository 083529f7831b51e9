"""The two models and how they run."""
