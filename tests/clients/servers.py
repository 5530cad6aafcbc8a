"""The servers of the matrix. Each says how a client reaches it directly (TLS, a password) and what the relay's target is."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import typing

import stand

LISTEN = "127.63.201.1"
# Of the relay that asks for its local password.
DOOR = "127.63.201.2"


@dataclasses.dataclass
class Server:
    name: str
    engine: str
    # Parameters of a client program; the relay's are the same for every server but for the port.
    direct: dict
    target: dict
    # A database with the sample table, for dumps.
    sample: str
    # How it comes to let the relay in, for the document.
    remark: str
    # What the client programs need to be those of this server's version.
    environment: dict = dataclasses.field(default_factory=dict)
    # Makes the server forget the logins that there were.
    forget: typing.Callable[[], object] = lambda: None

    def ways(self):
        relay = {"host": LISTEN, "port": self.target["relay_port"], "user": "anyone", "password": None, "tls": False}
        return {"direct": {**self.direct, "tls": True}, "relay": relay}


def postgres_15(stand_):
    port = stand_.ready["database"]["port"]
    for way, user in (("direct", "scram_user"), ("relay", "db_read")):
        stand_.psql("postgres", f"create database clients_{way}")
        stand_.psql(f"clients_{way}", f"grant all on schema public to {user}")
    stand_.psql("orders", "grant select on orders to scram_user")
    return Server(
        name=f"PostgreSQL {stand_.psql('postgres', 'show server_version').split()[0]} (Debian)",
        engine="postgres",
        direct={"host": "127.0.0.1", "port": port, "user": "scram_user", "password": stand.PASSWORD},
        target={
            "engine": "postgres", "host": stand.POSTGRES_HOST, "hostaddr": "127.0.0.1", "port": port, "relay_port": 5432,
            "credential": {"rds_iam": {"user": "db_read"}},
        },
        sample="orders",
        remark="the relay's IAM token is checked through PAM, as on RDS.",
    )


def postgres_18(stand_, tools):
    """Built without PAM, so it cannot check a token. Everything behind the login is what this server is for."""
    bin_ = pathlib.Path(tools) / "postgresql-18" / "bin"
    folder, port = stand_.folder / "postgresql-18", stand.free_port()
    folder.mkdir()
    sandbox = pathlib.Path(stand_.ready["folder"])
    for name in ("server.pem", "server.key"):
        shutil.copy(sandbox / "postgres" / name, folder / name)
    user = []
    if os.geteuid() == 0:
        # The server refuses to run as root, and its user may not be able to reach the tools.
        shutil.copytree(bin_.parent, folder / "program")
        bin_ = folder / "program" / "bin"
        subprocess.run(["chown", "-R", "postgres:", folder], check=True)
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
    initdb = ["initdb", "-D", folder / "data", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-A", "trust"]
    options = {"cwd": folder, "stdout": (folder / "log").open("w"), "stderr": subprocess.STDOUT}
    subprocess.run([*user, bin_ / initdb[0], *initdb[1:]], check=True, **options)
    (folder / "data" / "pg_hba.conf").write_text(
        "local all all trust\nhostssl all db_read 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
    )
    settings = {
        "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "ssl": "on", "fsync": "off",
        "ssl_cert_file": folder / "server.pem", "ssl_key_file": folder / "server.key",
    }
    server = [*user, bin_ / "postgres", "-D", folder / "data", *(f"--{name}={value}" for name, value in settings.items())]
    stand_.spawn(server, **options)
    ready = [bin_ / "pg_isready", "-q", "-h", folder, "-p", str(port)]
    stand.wait_until(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL 18")

    def psql(database, sql):
        command = [bin_ / "psql", "-X", "-q", "-A", "-t", "-h", folder, "-p", str(port), "-U", "postgres", "-d", database]
        return subprocess.run([*command, "-c", sql], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    psql("postgres", f"create role scram_user login password '{stand.PASSWORD}'")
    psql("postgres", "create role db_read login")
    for database in ("orders", "clients_direct", "clients_relay"):
        psql("postgres", f"create database {database}")
        psql(database, "grant all on schema public to scram_user, db_read")
    psql("orders", "create table orders (id int primary key, customer text not null, total numeric(10, 2))")
    psql("orders", "insert into orders select n, '片山 葵', n / 100.0 from generate_series(1, 1000) n")
    psql("orders", "grant select on orders to scram_user, db_read")
    return Server(
        name=f"PostgreSQL {psql('postgres', 'show server_version').split()[0]} (PyPI)",
        engine="postgres",
        direct={"host": "127.0.0.1", "port": port, "user": "scram_user", "password": stand.PASSWORD},
        target={
            "engine": "postgres", "host": stand.POSTGRES_HOST, "hostaddr": "127.0.0.1", "port": port, "relay_port": 5418,
            "credential": {"rds_iam": {"user": "db_read"}},
        },
        sample="orders",
        remark="built without PAM, so the relay's user is let in without being asked; psql, pgbench and pg_dump are of "
        "this version and speak protocol 3.2.",
        environment={"PATH": f"{bin_}:{os.environ['PATH']}", "PGMAXPROTOCOLVERSION": "3.2"},
    )


def mysql(stand_):
    ready = stand_.ready["mysql"]
    for way, user in (("direct", ready["direct_user"]), ("relay", ready["secret_user"])):
        stand_.mysql(f"create database clients_{way}; grant all on clients_{way}.* to {user}@'127.0.0.1'")
    return Server(
        name=f"MySQL {stand_.mysql('select version()').split('-')[0]} (Debian unstable)",
        engine="mysql",
        direct={"host": "127.0.0.1", "port": ready["port"], "user": ready["direct_user"], "password": stand.PASSWORD},
        target={
            "engine": "mysql", "host": ready["host"], "hostaddr": "127.0.0.1", "port": ready["port"], "relay_port": 3307,
            "credential": {"secrets_manager": {"secret_id": ready["secret"]}},
        },
        sample="events",
        remark="users with `caching_sha2_password`, the relay's out of a secret. Before each run the server forgets the "
        "passwords that it has checked, so that the first login is one in full and those after it are fast.",
        forget=lambda: stand_.mysql("flush privileges"),
    )


def mariadb(stand_):
    port = stand_.ready["mariadb"]["port"]
    for way, user in (("direct", "native_user"), ("relay", "db_read")):
        stand_.mariadb(f"create database clients_{way}; grant all on clients_{way}.* to {user}@'127.0.0.1'")
    stand_.mariadb("grant select on events.* to native_user@'127.0.0.1'")
    return Server(
        name=f"MariaDB {stand_.mariadb('select version()').split('-')[0]} (Debian)",
        engine="mysql",
        direct={"host": "127.0.0.1", "port": port, "user": "native_user", "password": stand.PASSWORD},
        target={
            "engine": "mysql", "host": stand.MYSQL_HOST, "hostaddr": "127.0.0.1", "port": port, "relay_port": 3306,
            "credential": {"rds_iam": {"user": "db_read"}},
        },
        sample="events",
        remark="the relay's IAM token is checked through PAM with the cleartext plugin.",
    )
