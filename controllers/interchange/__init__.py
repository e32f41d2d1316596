"""Interchange capability: predicted by microgrids, corrected by the network operator (seed 003)."""
