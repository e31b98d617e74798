"""The typed documents that pass between modules.

Evidence and Contract are decoded from what a host sent, so their strings, numbers and collections are bounded, in
`bounds` and nowhere else. Everything is frozen: a document is parsed once at the edge and trusted afterwards.

Units are in the names (`_s`, `_ms`, `_mib`). A file mode is an int as `stat` gives it, permission bits only.
"""
