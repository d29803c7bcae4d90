"""Engines configured for the coordinator: drivers, time limits and durability of each supported database."""

from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url

from app.storage.errors import is_read_only
from app.storage.limited_connection import LimitedConnection

READERS: Final = 4
"""Number of reading threads, each with its own connection."""
SQLITE_BUSY_S: Final = 10
"""How long SQLite waits for another process's lock, in seconds."""
CONNECT_TIMEOUT_S: Final = 5
"""How long PostgreSQL may take to accept a connection, in seconds."""
SILENCE_MAX_S: Final = 10
"""A connection whose peer acknowledges nothing for this long is closed: a dead network must not block the writer."""
LOCK_WAIT_MAX_S: Final = 3
"""How long a statement waits for a lock: the only writer must not be blocked by one row."""
STATEMENT_MAX_S: Final = 10
"""How long a statement may take, and how long a frozen process can keep its locks."""

_DRIVERS: Final = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}


def normal_url(database_url: str) -> URL:
    """The URL with the installed driver, whatever driver it names.

    Raises ValueError if the database is not supported.
    """
    try:
        url = make_url(database_url)
    except ValueError:  # its message would quote part of a password that contains an @
        raise ValueError(
            "HOLDFAST_DATABASE_URL: not a valid URL; %-encode @, : and / in the user name and password"
        ) from None
    backend = url.drivername.partition("+")[0]
    if backend not in _DRIVERS:
        known = "sqlite:///…, postgresql://… or mysql://…"
        raise ValueError(f"HOLDFAST_DATABASE_URL: {backend!r} is not supported; use {known}")
    return url.set(drivername=_DRIVERS[backend])


def is_embedded(database_url: str) -> bool:
    """Whether the database is a file that this process alone uses (SQLite)."""
    return normal_url(database_url).get_backend_name() == "sqlite"


def make_engine(database_url: str, *, patient: bool = False, pooled: bool = False) -> Engine:
    """An engine for the coordinator; on SQLite durable (synchronous=FULL), with one writer at a time.

    A `patient` engine has no time limits on statements and locks; migrations use it. A `pooled` one leads to a pooler,
    which gives each transaction whichever session of PostgreSQL is free.
    """
    url = normal_url(database_url)
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(url)
    is_postgresql = backend == "postgresql"
    if is_postgresql:
        arguments = _postgresql_arguments(url, is_limited=not (patient or pooled))
    else:
        arguments = _mysql_arguments(patient)
    engine = create_engine(url, pool_size=READERS + 2, max_overflow=2, **arguments)
    event.listen(engine, "handle_error", _leave_a_server_that_only_reads)
    if is_postgresql and not patient:
        event.listen(engine, "do_connect", _connect_postgresql)
    if pooled:
        event.listen(engine, "begin", _limit_pooled)
    if backend == "mysql":
        event.listen(engine, "do_connect", _connect_mysql)
        if not patient:
            event.listen(engine, "connect", _limit_mysql)
    return engine


def _leave_a_server_that_only_reads(context: ExceptionContext) -> None:
    """Give up all connections when one of them can't write: its server was demoted, and new ones may reach another."""
    if is_read_only(context.original_exception):
        context.is_disconnect = True


def _postgresql_arguments(url: URL, *, is_limited: bool) -> dict[str, Any]:
    connect_args: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": 1000 * SILENCE_MAX_S,
        "keepalives_idle": SILENCE_MAX_S,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    if "target_session_attrs" not in url.query:
        connect_args["target_session_attrs"] = "read-write"
    if is_limited:
        connect_args["options"] = " ".join(f"-c {name}={limit}" for name, limit in _postgresql_limits().items())
    else:
        connect_args["prepare_threshold"] = None  # a pooler gives each transaction another session
    return {"connect_args": connect_args}


def _postgresql_limits() -> dict[str, str]:
    return {
        "lock_timeout": f"{LOCK_WAIT_MAX_S}s",
        "statement_timeout": f"{STATEMENT_MAX_S}s",
        "idle_in_transaction_session_timeout": f"{STATEMENT_MAX_S}s",
    }


def _limit_pooled(connection: Connection) -> None:
    """Set the limits for this transaction alone: its session is the pooler's, which passes on no options."""
    limits = ", ".join(f"set_config('{name}', '{limit}', true)" for name, limit in _postgresql_limits().items())
    connection.exec_driver_sql(f"SELECT {limits}")


def _connect_postgresql(_dialect: Any, _record: Any, arguments: Any, options: Any) -> LimitedConnection:
    connection = LimitedConnection.connect(*arguments, **options)
    assert isinstance(connection, LimitedConnection)
    return connection


def _mysql_arguments(patient: bool) -> dict[str, Any]:
    """Independent of the server's defaults: all of Unicode, no silent truncation, no gap locks."""
    connect_args = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "write_timeout": SILENCE_MAX_S,
        "read_timeout": None if patient else STATEMENT_MAX_S + CONNECT_TIMEOUT_S,  # longer than the server's own limit
        "charset": "utf8mb4",
        "sql_mode": "STRICT_ALL_TABLES",
    }
    return {"connect_args": connect_args, "isolation_level": "READ COMMITTED"}


def _connect_mysql(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
    """Connect within the limit, whose rest the driver forgets; name the setting when it doesn't know an option."""
    patience_s = options["read_timeout"]
    try:
        connection = dialect.connect(*arguments, **options | {"read_timeout": CONNECT_TIMEOUT_S})
        connection._read_timeout = patience_s
        return connection
    except TypeError as error:
        raise ValueError(f"HOLDFAST_DATABASE_URL: the driver doesn't accept an option after the `?`: {error}") from None


def _limit_mysql(connection: Any, _record: Any) -> None:
    """Set the limits that this server has, and have each transaction on a Galera node see all earlier ones.

    MySQL can limit reads only; the locks of a frozen process end with the idle timeout of its connection.
    """
    limits = {
        "innodb_lock_wait_timeout": LOCK_WAIT_MAX_S,
        "lock_wait_timeout": LOCK_WAIT_MAX_S,  # of tables
        "max_statement_time": STATEMENT_MAX_S,  # MariaDB
        "max_execution_time": 1000 * STATEMENT_MAX_S,  # MySQL
        "idle_transaction_timeout": STATEMENT_MAX_S,  # MariaDB
        "wsrep_sync_wait": 7,  # Galera, before reads, updates and inserts
    }
    with connection.cursor() as cursor:
        cursor.execute("SHOW SESSION VARIABLES WHERE Variable_name IN %s", [tuple(limits)])
        has = {name: limits[name] for name, _ in cursor.fetchall()}
        if "idle_transaction_timeout" not in has:
            has["wait_timeout"] = 3 * STATEMENT_MAX_S
        cursor.execute("SET " + ", ".join(f"SESSION {name} = {value}" for name, value in has.items()))


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ValueError(
            "HOLDFAST_DATABASE_URL: an in-memory database loses everything on restart; "
            "name a file, such as sqlite:///holdfast.db"
        )
    engine = create_engine(url, pool_size=READERS + 1, connect_args={"timeout": SQLITE_BUSY_S})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we send BEGIN: the driver would send it too late, and never IMMEDIATE
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("holdfast_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
