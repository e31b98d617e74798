"""The catalogue of faults, one file for each group of checks."""
