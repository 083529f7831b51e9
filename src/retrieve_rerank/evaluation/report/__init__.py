"""An evaluation or a tuning as one HTML file that needs nothing from outside."""
