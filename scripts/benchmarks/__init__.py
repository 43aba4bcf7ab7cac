"""Measures speed and memory by named workloads, alone or with a peer on the same work."""
