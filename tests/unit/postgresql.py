"""A PostgreSQL server for tests: in a folder of its own, on a socket there and no port, for as long as it is wanted."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

# Debian keeps the server's programs of each version off the PATH.
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
SERVER = shutil.which("postgres", path=os.pathsep.join([*map(str, reversed(FOLDERS)), os.environ["PATH"]]))


@contextmanager
def server() -> Iterator[str]:
    """Gives the URL of an empty database in UTF-8. The server refuses to run as root, so then another user runs it."""
    assert SERVER, "postgresql is not installed"
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="kvmfleet-postgresql-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, user)
        options = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        initdb = [Path(SERVER).with_name("initdb"), "--pgdata", folder / "data", "--username", "tester"]
        subprocess.run(
            [*initdb, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **options,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [SERVER, "-D", folder / "data", "-k", folder, "-F", "-c", "listen_addresses="],
                stdout=log, stderr=log, cwd=folder, **options,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while "ready to accept connections" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"postgresql://tester@/postgres?host={quote(str(folder), safe='')}"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def new_database(server: str) -> str:
    """One of the server's schemas, which is as good as a database of its own, and quicker made."""
    schema = f"t{uuid.uuid4().hex}"
    engine = sa.create_engine(server.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    return f"{server}&options=-csearch_path%3D{schema}"
