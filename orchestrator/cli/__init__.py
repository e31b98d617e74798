"""The command line: arguments, printing and exit codes. Nothing else in this package prints or exits.

Heavy modules are imported inside the commands that need them, so that `--help` and completion stay quick.
"""
