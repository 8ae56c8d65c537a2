"""Whole deployments: the best instance of every size, and the exact mix of them that fills the clusters."""
