"""The catalogue of checks: pure functions from evidence to a finding, one file a group."""
