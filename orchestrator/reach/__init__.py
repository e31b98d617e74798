"""The ways to a host: which one leads to it, and how a question is asked on each."""
