"""Simulation-based inference: a Pyro program as a source of data sets, one network of it, and what checks it."""
