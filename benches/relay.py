#!/usr/bin/env python3
"""The relay against a direct TLS connection, PgBouncer (session mode, TLS upstream) and HAProxy (TCP mode).

Rounds are interleaved (every way once, then again), medians are compared, and ratios are printed: the numbers of one
machine mean little by themselves. Needs only the standard library; started by scripts/bench.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "scripts"))

from measure import Crowd, interleaved, percentile, postgres_log_in, rss_kb  # noqa: E402
from stand import PASSWORD, POSTGRES_HOST, Stand, free_port, wait_port  # noqa: E402

LISTEN, AUDITED = "127.63.200.1", "127.63.200.2"
# What PostgreSQL's max_connections in the sandbox leaves room for.
IDLE, BUSY = 700, 100


class SlowLog:
    """Takes what a pipe holds, 64 KiB, and rests so many seconds behind each piece, as a log driver does that blocks."""

    def __init__(self, rest):
        read, self.end = os.pipe()
        threading.Thread(target=self.take, args=(read, rest), daemon=True).start()

    @staticmethod
    def take(read, rest):
        while os.read(read, 64 * 1024):
            if rest:
                time.sleep(rest)


class Bench:
    def __init__(self, arguments, stand):
        self.arguments, self.stand = arguments, stand
        self.port = stand.ready["database"]["port"]
        stand.psql("postgres", "create database bench")
        at = ["-h", stand.ready["database"]["socket_folder"], "-p", str(self.port)]
        subprocess.run(["pgbench", "-i", "-q", "-s", "10", "-U", "postgres", *at, "bench"], check=True, capture_output=True)
        stand.psql("bench", "grant all on all tables in schema public to db_read, scram_user")
        target = {"host": POSTGRES_HOST, "hostaddr": "127.0.0.1", "port": self.port}
        iam = {"rds_iam": {"user": "db_read"}}
        targets = {
            "login": {**target, "engine": "postgres", "database": "bench", "relay_port": 5432, "credential": iam},
            "bytes": {**target, "engine": "tcp", "relay_port": 6000},
        }
        self.relay = stand.relay(arguments.relay, targets, LISTEN)
        self.login = {"login": targets["login"]}
        stand.relay(arguments.relay, self.login, AUDITED, audit="statements")
        self.slow = {}
        self.start_pgbouncer()
        self.haproxy_port = stand.haproxy(self.port)

    def start_pgbouncer(self):
        self.bouncer_port = free_port()
        settings = self.stand.folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\nbench = host=127.0.0.1 port={self.port} dbname=bench user=scram_user "
            f"password='{PASSWORD}'\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.bouncer_port}\n"
            "unix_socket_dir =\nauth_type = any\npool_mode = session\ndefault_pool_size = 800\nmax_client_conn = 2000\n"
            "server_tls_sslmode = require\nlog_connections = 0\nlog_disconnections = 0\n"
        )
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"] if os.geteuid() == 0 else []
        self.bouncer = self.stand.spawn([*user, shutil.which("pgbouncer") or "/usr/sbin/pgbouncer", "-q", settings], stderr=subprocess.DEVNULL)
        wait_port("127.0.0.1", self.bouncer_port)

    def ways(self):
        tls = {"PGSSLMODE": "require", "PGPASSWORD": PASSWORD}
        return {
            "direct TLS": ("127.0.0.1", self.port, "scram_user", tls),
            "bastion": (LISTEN, 5432, "anyone", {"PGSSLMODE": "disable"}),
            "audited": (AUDITED, 5432, "anyone", {"PGSSLMODE": "disable"}),
            **{way: (listen, 5432, "anyone", {"PGSSLMODE": "disable"}) for way, listen in self.slow.items()},
            "PgBouncer": ("127.0.0.1", self.bouncer_port, "anyone", {"PGSSLMODE": "disable"}),
            "bastion tcp": (LISTEN, 6000, "scram_user", tls),
            "HAProxy tcp": ("127.0.0.1", self.haproxy_port, "scram_user", tls),
        }

    def pgbench(self, way, options, clients):
        host, port, user, environment = self.ways()[way]
        # The logins count as time, not as transactions.
        seconds = self.arguments.seconds + clients // 50
        threads = ["-c", str(clients), "-j", str(min(clients, 2))]
        command = ["pgbench", "-n", "-T", str(seconds), "-h", host, "-p", str(port), "-U", user, *threads, *options, "bench"]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{way}: {done.stderr}")
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if not found:
            sys.exit(f"{way}: {done.stdout}{done.stderr}")
        return float(found[1])

    def latencies(self, way, clients=1):
        """Median and 99th percentile of selects, in ms."""
        log = self.stand.folder / f"log-{way.replace(' ', '-')}"
        for old in self.stand.folder.glob(f"{log.name}*"):
            old.unlink()
        self.pgbench(way, ["-S", "-l", f"--log-prefix={log}"], clients)
        times = [int(line.split()[2]) / 1000 for path in self.stand.folder.glob(f"{log.name}*") for line in path.open()]
        return statistics.median(times), percentile(times, 99)

    def table(self, title, options, clients):
        ways = [way for way in self.ways() if way != "audited"]
        tps = interleaved(ways, self.arguments.rounds, lambda way: self.pgbench(way, options, clients))
        print(
            f"{title:<26} {tps['direct TLS']:>9.0f} {tps['bastion']:>9.0f} {tps['PgBouncer']:>9.0f}"
            f" {tps['bastion'] / tps['direct TLS']:>8.2f} {tps['bastion'] / tps['PgBouncer']:>8.2f}"
            f" {tps['bastion tcp'] / tps['HAProxy tcp']:>8.2f}",
            flush=True,
        )

    def audit(self):
        """What a record of every statement costs; short rounds, because both ways must meet the same machine."""
        print(f"\n{'with statement audit':<26} {'without':>9} {'with':>9} {'ratio':>8}")
        for clients in (1, 16, 64):
            tps = interleaved(["bastion", "audited"], 3 * self.arguments.rounds, lambda way: self.pgbench(way, ["-S"], clients))
            ratio = tps["audited"] / tps["bastion"]
            print(f"{f'select, {clients} clients':<26} {tps['bastion']:>9.0f} {tps['audited']:>9.0f} {ratio:>8.2f} (at least 0.95)", flush=True)

    def slow_log(self):
        """What a log that is slow to take records leaves of selects, in shares of those without records."""
        rests = [0, 1, 10, 100]
        for at, rest in enumerate(rests):
            log = SlowLog(rest / 1000)
            self.slow[f"rest {rest}"] = f"127.63.200.{10 + at}"
            self.stand.relay(self.arguments.relay, self.login, self.slow[f"rest {rest}"], log=log.end, audit="statements")
        print(f"\n{'a log that rests, ms':<26} " + " ".join(f"{rest:>9}" for rest in rests))
        for clients in (1, 16, 64):
            ways = ["bastion", *self.slow]
            tps = interleaved(ways, self.arguments.rounds, lambda way: self.pgbench(way, ["-S"], clients))
            shares = " ".join(f"{tps[way] / tps['bastion']:>9.2f}" for way in self.slow)
            print(f"{f'select, {clients} clients':<26} {shares}", flush=True)

    def run(self):
        if self.arguments.only == "audit":
            return self.audit()
        if self.arguments.only == "slow-log":
            return self.slow_log()
        size = os.path.getsize(self.arguments.relay) / 1e6
        print(f"relay binary {size:.2f} MB ({size / 12:.2f} of 12 MB)")
        idle = rss_kb(self.relay.pid) / 1024
        print(f"relay RSS idle {idle:.1f} MB ({idle / 12:.2f} of 12 MB)")
        print(f"\n{'transactions per second':<26} {'direct':>9} {'bastion':>9} {'PgBouncer':>9} {'/direct':>8} {'/PgB':>8} {'tcp/HAP':>8}")
        for clients in (1, 16, 256):
            self.table(f"select, {clients} clients", ["-S"], clients)
        for clients in (1, 16, 256):
            self.table(f"read-write, {clients} clients", [], clients)
        self.table("new connections, 4 clients", ["-S", "-C"], 4)
        self.audit()
        print(f"\n{'latency of a select, ms':<26} {'median':>9} {'p99':>9} {'added':>9}")
        base = None
        for way in self.ways():
            median, p99 = self.latencies(way)
            base = base or median
            print(f"{way:<26} {median:>9.3f} {p99:>9.3f} {median - base:>9.3f}", flush=True)
        self.crowd()

    def crowd(self):
        """The first clients warm buffers up; what counts is what more of them cost, in memory and in others' time."""
        # It keeps hundreds of connections to the server open.
        self.bouncer.terminate()
        self.bouncer.wait()
        with Crowd(100, postgres_log_in, (LISTEN, 5432)):
            before = rss_kb(self.relay.pid)
            alone = min(self.latencies("bastion", BUSY)[1] for _ in range(self.arguments.rounds))
            with Crowd(IDLE - 100, postgres_log_in, (LISTEN, 5432)):
                used = rss_kb(self.relay.pid)
                crowded = min(self.latencies("bastion", BUSY)[1] for _ in range(self.arguments.rounds))
        each = (used - before) / (IDLE - 100)
        print(f"\nrelay RSS with {IDLE} idle clients {used / 1024:.1f} MB, {each:.1f} kB for each ({each / 40:.2f} of 40 kB)")
        print(
            f"p99 of {BUSY} busy clients {alone:.1f} ms, with {IDLE} idle ones {crowded:.1f} ms ({crowded / alone:.2f}, at most 1.5)"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--relay", required=True, type=os.path.abspath)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["audit", "slow-log"], help="this table alone")
    arguments = parser.parse_args()
    with Stand(arguments.programs) as stand:
        Bench(arguments, stand).run()


main()
