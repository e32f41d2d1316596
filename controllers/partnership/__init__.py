"""The partnership of a distribution operator and microgrids: modified Benders decomposition (seed 000)."""
