#!/usr/bin/env python3
"""Every client against every server, directly and through the relay; the results are compared and become docs/clients.md.

Started by scripts/test-clients. --only NAME… runs some of the clients and writes no document.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import servers  # noqa: E402  (needs the path above)
import stand  # noqa: E402

# Title of the column, and what the check does.
CHECKS = {
    "login": ("login", "the database named by the client, TLS on the way to the server; for pgbench its tables are made, "
              "for the dump programs the sample table is dumped"),
    "prepared": ("prepared statements", "twenty executions of a statement prepared in the server (pgbench: 200 transactions "
                 "in each of its three protocols)"),
    "transaction": ("transaction", "one rolled back, one committed"),
    "error": ("errors", "SQLSTATEs of a syntax error, a failing statement and a duplicate key; the connection goes on"),
    "cancel": ("cancel", "a running statement is cancelled the way the client does it; the connection goes on"),
    "big_result": ("100 MB result", "100,000 rows of 1,000 bytes, hashed"),
    "big_parameter": ("20 MB parameter", "its length and hash in the server"),
    "unicode": ("Unicode", "beyond the basic plane and right to left, there and back"),
    "character_sets": ("character sets", "connections with several character sets and collations, and what the session has then"),
    "several": ("several statements", "in one query: their results, and an error in the middle"),
    "anew": ("session anew", "a change of the user (COM_CHANGE_USER) and a reset, as far as the client has them: nothing is "
             "left of the session, and its character set is the same"),
    "local_infile": ("LOAD DATA LOCAL", "refused, as the server refuses it where the client does not offer it"),
    "tracking": ("session tracking", "what the server tells beside its answers: variables, the database"),
    "newer": ("MySQL 8 and 9", "query attributes, vectors, a client that offers compression"),
    "reconnect": ("reconnect", "the server ends the connection, the client notices, a new one works"),
    "password": ("local password", "a relay with `local_password`, for MySQL with `read_only` too: the login with it, and not with another one"),
    "round_trip": ("dump and restore", "dumped and restored with two jobs, then dumped again: the same text"),
}
# Name in the document, engine, program, parameters of its own.
CLIENTS = [
    ("psql", "postgres", "client_psql.py", {}),
    ("pgbench", "postgres", "client_pgbench.py", {}),
    ("pg_dump, pg_restore", "postgres", "client_pg_dump.py", {}),
    ("psycopg", "postgres", "client_psycopg.py", {}),
    ("asyncpg", "postgres", "client_asyncpg.py", {}),
    ("node pg", "postgres", "client_pg.js", {}),
    ("JDBC PostgreSQL", "postgres", "Jdbc.java", {"driver": "postgresql"}),
    ("mysql", "mysql", "client_mysql.py", {"program": "mysql"}),
    ("mysqldump", "mysql", "client_mysql_dump.py", {"program": "mysqldump"}),
    ("mariadb", "mysql", "client_mysql.py", {"program": "mariadb"}),
    ("mariadb-dump", "mysql", "client_mysql_dump.py", {"program": "mariadb-dump"}),
    ("PyMySQL", "mysql", "client_pymysql.py", {}),
    ("mysqlclient", "mysql", "client_mysqlclient.py", {}),
    ("mysql-connector-python", "mysql", "client_mysql_connector.py", {"pure": True}),
    ("mysql-connector-python (libmysqlclient)", "mysql", "client_mysql_connector.py", {"pure": False}),
    ("node mysql2", "mysql", "client_mysql2.js", {}),
    ("PHP mysqli", "mysql", "client_mysqli.php", {}),
    ("JDBC MySQL", "mysql", "Jdbc.java", {"driver": "mysql"}),
    ("JDBC MariaDB", "mysql", "Jdbc.java", {"driver": "mariadb"}),
]
# Programs of MySQL, which come with the server.
MYSQL_PROGRAMS = ("mysql", "mysqldump")


def command(program, parameters, tools):
    if program.endswith(".py"):
        return [tools / "venv/bin/python", HERE / program, json.dumps(parameters)]
    if program.endswith(".js"):
        return ["node", HERE / program, json.dumps(parameters)]
    words = [parameters[name] for name in ("host", "port", "user", "password", "database")]
    if program.endswith(".php"):
        return ["php", "-d", "memory_limit=2G", HERE / program, json.dumps(parameters)]
    jars = {
        "postgresql": "/usr/share/java/postgresql.jar", "mariadb": "/usr/share/java/mariadb-java-client.jar",
        "mysql": tools / "mysql-connector-j.jar",
    }
    options = ["-Xmx2g", "-Dfile.encoding=UTF-8", "-cp", jars[parameters["driver"]]]
    only = [parameters["only"]] if "only" in parameters else []
    words = [parameters["driver"], *(str(word or "") for word in words), str(parameters["tls"]).lower(), *only]
    return ["java", *options, HERE / program, *words]


def run(program, server, parameters, tools):
    """The lines of a client program: what each check got, or how it failed."""
    own = {
        "NODE_PATH": str(tools / "node_modules"), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8",
        "PATH": f"{stand.MYSQL / 'bin'}:{os.environ['PATH']}",
    }
    environment = {**os.environ, **own, **server.environment}
    words = command(program, parameters, tools)
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as hung:
        sys.exit(f"{program} did not end within 300 s; it had said:\n{hung.stdout}\n{hung.stderr}")
    lines = {line.pop("check"): line for line in map(json.loads, done.stdout.splitlines())}
    if done.returncode != 0 or not lines:
        sys.exit(f"{program} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return lines


class Matrix:
    def __init__(self, tools):
        self.tools = tools
        # Of the relay that asks for it.
        self.password = None
        self.servers = {}
        self.rows = {}
        self.findings = []

    def compare(self, server, name, program, own):
        started = time.monotonic()
        self.servers[server.name] = server.remark
        lines = {}
        for way, parameters in server.ways().items():
            parameters = {**parameters, **own, "database": f"clients_{way}", "sample": server.sample}
            server.forget()
            lines[way] = run(program, server, parameters, self.tools)
        direct, relay = lines["direct"], lines["relay"]
        relay["password"] = self.door(server, program, own)
        direct["password"] = {"got": [direct["login"].get("got"), "access denied"]}
        version = direct.pop("version")["got"]
        relay.pop("version", None)
        cells = {}
        for check in direct.keys() | relay.keys():
            mine, theirs = relay.get(check, {"failed": "not run"}), direct.get(check, {"failed": "not run"})
            cells[check] = "same" if mine == theirs and "got" in mine else "**differs**"
            if cells[check] != "same":
                self.findings.append(f"{name} on {server.name}, {check}:\n  direct {short(theirs)}\n  relay  {short(mine)}")
        self.rows[server.name].append((name, version, cells))
        seconds = time.monotonic() - started
        print(f"  {server.name}, {name} {version}: {verdict(cells)} ({seconds:.1f} s)", file=sys.stderr, flush=True)

    def door(self, server, program, own):
        """What a login gets with the local password, and with another one."""
        tries = []
        for password in (self.password, self.password[::-1]):
            parameters = {**server.ways()["relay"], **own, "host": servers.DOOR, "database": "clients_relay"}
            more = {"sample": server.sample, "password": password, "only": "login"}
            tries.append(run(program, server, {**parameters, **more}, self.tools).get("login", {}))
        right, wrong = tries
        # The server's own words come first, and some drivers show no more than those.
        texts = ("access denied", "password authentication failed")
        denied = "access denied" if any(text in wrong.get("failed", "") for text in texts) else wrong
        return {"got": [right.get("got", right), denied]}

    def document(self):
        lines = [
            "# Clients", "",
            "Made by `make test-clients` ([tests/clients](../tests/clients)): each check runs against the server itself (TLS, "
            "a password) and through the relay (any user, no password), and the results are compared: values, counts, hashes, "
            "SQLSTATEs. *same* means that both passed with equal results; – that the program has no such thing.", "",
        ]
        for server, rows in self.rows.items():
            # Those that a client of this server has.
            checks = {check: title for check, (title, _) in CHECKS.items() if any(check in cells for _, _, cells in rows)}
            lines += [f"## {server}", "", f"| client | {' | '.join(checks.values())} |", f"| --- |{' --- |' * len(checks)}"]
            for name, version, cells in rows:
                lines.append(f"| {name} {version} | {' | '.join(cells.get(check, '–') for check in checks)} |")
            lines.append("")
        lines += ["## The checks", "", *(f"- **{title}**: {text}." for title, text in CHECKS.values()), ""]
        lines += ["## The servers", "", *(f"- {name}: {text}" for name, text in self.servers.items()), ""]
        return "\n".join(lines)


def verdict(cells):
    wrong = sorted(check for check, cell in cells.items() if cell != "same")
    return f"{len(cells)} checks, the same through the relay" if not wrong else f"DIFFERS in {', '.join(wrong)}"


def short(line):
    text = json.dumps(line, ensure_ascii=False)
    return text if len(text) < 500 else f"{text[:500]}…"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True, help="folder of bastion and bastion-sandbox")
    parser.add_argument("--tools", required=True, type=pathlib.Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="clients or servers whose name contains this")
    arguments = parser.parse_args()
    matrix = Matrix(arguments.tools.resolve())
    has_mysql = (stand.MYSQL / "bin/mysqld").exists()
    clients = [client for client in CLIENTS if has_mysql or client[0] not in MYSQL_PROGRAMS]
    with stand.Stand(arguments.programs, with_mysql=has_mysql) as ground:
        all_servers = [
            servers.postgres_15(ground), servers.postgres_18(ground, matrix.tools), servers.mariadb(ground),
            *([servers.mysql(ground)] if has_mysql else []),
        ]
        targets = {f"target-{server.target['relay_port']}": server.target for server in all_servers}
        ground.relay(f"{arguments.programs}/bastion", targets, servers.LISTEN)
        allow = ["arn:aws:sts::123456789012:assumed-role/Developer/alice"]
        # Read-only sessions are set up in the login.
        behind_door = {name: {**target, "read_only": target["engine"] == "mysql"} for name, target in targets.items()}
        ground.relay(f"{arguments.programs}/bastion", behind_door, servers.DOOR, local_password=True, allow=allow)
        matrix.password = ground.local_password(servers.DOOR)
        # The order of the document.
        matrix.rows = {server.name: [] for server in all_servers}

        def all_of(server):
            for name, engine, program, own in clients:
                wanted = not arguments.only or any(word in f"{name} {server.name}" for word in arguments.only)
                if engine == server.engine and wanted:
                    matrix.compare(server, name, program, own)

        # The servers know nothing of one another.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(all_of, server) for server in all_servers]:
                done.result()
        if matrix.findings:
            print("\n".join(["", *matrix.findings]), file=sys.stderr)
            log = (ground.folder / f"relay-{servers.LISTEN}.log").read_text().splitlines()
            print("\n".join(["", "The relay's last words:", *log[-20:]]), file=sys.stderr)
    if not has_mysql:
        print("\nNOT RUN: MySQL, its server and its programs, which scripts/setup could not get here; docs/clients.md stays as it is",
              file=sys.stderr)
    elif not arguments.only:
        (ROOT / "docs/clients.md").write_text(matrix.document())
    sys.exit(1 if matrix.findings else 0)


main()
