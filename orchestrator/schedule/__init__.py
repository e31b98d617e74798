"""Drift checks that come back by themselves."""
