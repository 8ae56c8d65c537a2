"""Calibration: coefficients of the cost model fitted to measured deployments, and their error on unseen ones."""
