"""Trains, evaluates, promotes and serves QA-MoE (arXiv 2604.05704)."""
