"""Which database a history is in, and how to name it without the secrets in its URL."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.text import printable

__all__ = ["POSSIBLE", "chosen", "file", "name", "secret"]

POSSIBLE = "sqlite:////path/to/history.sqlite3 or postgresql://user@host/database"
DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret"})  # that libpq takes beside the one of the URL
TOLD = ("host", "port", "service", "dbname", "user")

# A history that does not answer must not hold up a run: libpq by itself waits for minutes, and for ever once connected.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
IMPATIENT = {
    "connect_timeout": "15",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


def chosen(url: str = "") -> sa.URL:
    """The database of this URL, else of KVMFLEET_STORE, else the file in the state folder.

    Raises StoreError, in which nothing of the URL is repeated: what cannot be taken apart may be a password anywhere.
    """
    url = url or os.environ.get("KVMFLEET_STORE", "")
    if not url:
        return sa.URL.create("sqlite", database=str(paths.history()))
    try:
        place = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # the latter of a port that is no number
        raise StoreError("history: --store or KVMFLEET_STORE is no URL.", hint=f"Write {POSSIBLE}.") from None
    if place.drivername not in DRIVERS:
        raise StoreError(f"history: {place.drivername} is no database that is supported.", hint=f"Write {POSSIBLE}.")
    if "@" in (place.host or ""):
        raise StoreError("history: there is an @ too many in the URL.", hint="Inside a name or a password, write %40.")
    place = place.set(drivername=DRIVERS[place.drivername])
    return place if place.drivername == "sqlite" else place.set(query={**IMPATIENT, **place.query})


def file(place: sa.URL) -> Path | None:
    """The file of SQLite's; None where there is none."""
    if place.drivername != "sqlite" or not place.database or place.database == ":memory:":
        return None
    return Path(place.database)


def secret(place: sa.URL) -> bool:
    """Whether it holds one."""
    return bool(place.password) or not SECRETS.isdisjoint(place.query)


def name(place: sa.URL) -> str:
    """For messages: no password, and of the parameters only those that say where it is."""
    if place.drivername == "sqlite":
        return printable(place.database or ":memory:")
    told = {key: place.query[key] for key in TOLD if key in place.query}
    return printable(place.set(drivername="postgresql", query=told).render_as_string(hide_password=True))
