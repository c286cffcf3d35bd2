"""The HTTP service: one Ray Serve deployment with FastAPI in the replica."""
