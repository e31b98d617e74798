"""What runs on the host: it looks, it proves, it prints one JSON document, and it leaves nothing behind.

Standard library only and the syntax of Python 3.6, because a host has what it has. `payload.py` packs these modules
into one source that is fed to `python3 -I`; nothing is installed. No module here imports one from outside the folder.
"""
