"""Where a record is stored: in study.db in the run's folder, or in a database at a URL, which may be shared."""

from __future__ import annotations

import fcntl
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from evomerge.errors import StudyError

DATABASE = "study.db"
STUDY = "evomerge"
"""The study's name in study.db; in a database at a URL, it is the name of the run's folder."""

CONNECT_SECONDS = 10
"""How long to wait for a database server; without it, an address that does not answer takes minutes."""

_DRIVERS = {"psycopg2": "evomerge[postgresql]", "MySQLdb": "mysqlclient"}
"""What to install for a missing driver, if its name differs."""

# Held by the session: the server drops them when the process dies.
_LOCKS = {
    "postgresql": sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"),
    "mysql": sqlalchemy.text("SELECT GET_LOCK(:key, 0)"),
}


class Storage:
    """One study's place in a database; nothing is opened until `open`.

    Args:
        folder: the run's folder.
        url: the database's URL; None: study.db in the folder.
        name: the study's name in the database at the URL; the folder's name by default.

    Attributes:
        url: the database's URL, which may hold a password.
        label: the database in messages: its path, or its URL without the password.
        study: the study's name.
        title: the study in messages: the run's folder, or the database and the study's name.
        path: the file of an SQLite database; None for a server's.
        own: whether the database is study.db in the folder.

    Raises:
        StudyError: the URL is not one of a supported database, or the database's driver is not installed.
    """

    def __init__(self, folder: Path, url: str | None = None, name: str | None = None) -> None:
        own = folder / DATABASE
        self.url = sqlalchemy.URL.create("sqlite", database=str(own)) if url is None else _parsed(url)
        self.path = Path(self.url.database or "") if self.url.get_backend_name() == "sqlite" else None
        self.own = self.path is not None and self.path.resolve() == own.resolve()
        if self.own:  # also where a URL says so
            self.label, self.study, self.title = str(own), STUDY, str(folder)
            return
        # Passwords may be in the query as well.
        secret = [key for key in self.url.query if "pass" in key.lower()]
        shown = self.url.difference_update_query(secret)._replace(password=None)
        self.label = shown.set(drivername=shown.get_backend_name()).render_as_string()
        self.study = name or folder.resolve().name
        self.title = f'{self.label}: study "{self.study}"'

    def open(self, path: Path | None = None) -> optuna.storages.RDBStorage:
        """Returns the open database, with the tables of an Optuna storage.

        Args:
            path: an SQLite file to open in place of its own.
        """
        url = self.url.set(database=str(path)) if path else self.url
        options: dict[str, Any] = {}
        if url.get_backend_name() != "sqlite":
            # An evaluation may take longer than servers keep an idle connection.
            options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Optuna fills in braces of a URL.
            text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
            return optuna.storages.RDBStorage(text, engine_kwargs=options)

    def lock(self, storage: optuna.storages.RDBStorage) -> sqlalchemy.Connection | int | None:
        """Locks the study for one search, which holds what is returned (a connection, or a file descriptor).

        Returns:
            None if another search holds it.
        """
        if self.path:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            return descriptor
        connection = storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # Closing it ends the session: a pooled one would keep the lock.
        digest = hashlib.sha256(f"evomerge {self.study}".encode()).digest()
        key = int.from_bytes(digest[:8], signed=True)
        if connection.execute(_LOCKS[self.url.get_backend_name()], {"key": key}).scalar():
            return connection
        connection.close()
        return None

    def reason(self, fault: BaseException) -> str:
        """Returns the first line of an error's cause, without the password."""
        cause = fault.__cause__ or fault
        line = (str(cause).splitlines() or [type(cause).__name__])[0]
        secrets = [self.url.password, *(value for key, value in self.url.query.items() if "pass" in key.lower())]
        for secret in secrets:
            line = line.replace(str(secret), "***") if secret else line
        return line


def _parsed(text: str) -> sqlalchemy.URL:
    # No message quotes the text: what cannot be parsed may hold a password.
    fault = StudyError(
        "--storage: not the URL of a supported database; expected postgresql://USER:PASSWORD@HOST/DATABASE,"
        " mysql://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE"
    )
    try:
        url = sqlalchemy.make_url(text)
        if url.drivername == "postgresql":  # whose default driver differs between versions of SQLAlchemy
            url = url.set(drivername="postgresql+psycopg2")
        if url.get_backend_name() not in (*_LOCKS, "sqlite"):
            raise fault
        url.get_dialect().import_dbapi()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise fault from None
    except ImportError as missing:
        package = _DRIVERS.get(missing.name or "", missing.name)
        raise StudyError(
            f"--storage: {url.get_backend_name()} needs the Python package {missing.name}, which is not installed; run"
            f" pip install '{package}'"
        ) from None
    if url.get_backend_name() != "sqlite":
        return url
    if url.database in (None, "", ":memory:"):
        raise StudyError("--storage: a database in memory is lost with the process; name a file: sqlite:///FILE")
    return url.set(database=str(Path(str(url.database)).absolute()))
