"""Process and thread pools, measured side by side: ``python -m pools``."""
