#!/usr/bin/env python3
"""The relay against a direct TLS connection, PgBouncer (session mode, TLS upstream) and HAProxy (TCP mode).

Rounds are interleaved (every way once, then again), medians are compared, and ratios are printed: the numbers of one
machine mean little by themselves. Needs only the standard library; started by scripts/bench.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

LISTEN = "127.63.200.1"
PASSWORD = "correct horse battery staple"
HOST = "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_port(host, port):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on {host}:{port}")


def rss_mb(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.children = []
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="bastion-bench-"))
        self.folder.chmod(0o755)

    def spawn(self, command, **options):
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        self.children.append(child)
        return child

    def close(self):
        for child in reversed(self.children):
            child.terminate()
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self):
        programs = pathlib.Path(self.arguments.programs).resolve()
        sandbox = self.spawn([programs / "bastion-sandbox", "up"], stdout=subprocess.PIPE, text=True)
        ready = json.loads(sandbox.stdout.readline())
        self.database_port, socket_folder = ready["database"]["port"], ready["database"]["socket_folder"]
        admin = ["psql", "-X", "-q", "-U", "postgres", "-h", socket_folder, "-p", str(self.database_port)]
        subprocess.run([*admin, "-d", "postgres", "-c", "create database bench"], check=True)
        pgbench = ["pgbench", "-i", "-q", "-s", "10", "-U", "postgres", "-h", socket_folder, "-p", str(self.database_port), "bench"]
        subprocess.run(pgbench, check=True, capture_output=True)
        grant = "grant all on all tables in schema public to db_read, scram_user"
        subprocess.run([*admin, "-d", "bench", "-c", grant], check=True)
        # A task of the sandbox lends its role; the relay that is measured runs beside it.
        environment = {**os.environ, **ready["callers"]["alice"], "HOME": str(self.folder)}
        up = self.spawn(
            [programs / "bastion", "up", "demo", "--json"],
            stdout=subprocess.PIPE, text=True, env=environment, cwd=self.folder,
        )
        for line in up.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                break
        target = {"host": HOST, "hostaddr": "127.0.0.1", "port": self.database_port}
        config = {
            "env": "bench", "access": "write", "region": "ap-northeast-1", "max_connections": 2000,
            "identity": "optional",
            "target": {
                "login": {**target, "engine": "postgres", "database": "bench", "relay_port": 5432,
                          "credential": {"rds_iam": {"user": "db_read"}}},
                "bytes": {**target, "engine": "tcp", "relay_port": 6000},
            },
        }
        self.relay = self.spawn(
            [self.arguments.relay, "relay"],
            stderr=subprocess.DEVNULL,
            env={
                "BASTION_CONFIG": json.dumps(config), "BASTION_LISTEN": LISTEN,
                "BASTION_EXTRA_CA_FILE": ready["database"]["ca_file"],
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{ready['endpoint']}/credentials/{event['task']}",
            },
        )
        wait_port(LISTEN, 5432)
        self.start_pgbouncer()
        self.start_haproxy()

    def start_pgbouncer(self):
        self.bouncer_port = free_port()
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\nbench = host=127.0.0.1 port={self.database_port} dbname=bench user=scram_user "
            f"password='{PASSWORD}'\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.bouncer_port}\n"
            "unix_socket_dir =\nauth_type = any\npool_mode = session\ndefault_pool_size = 800\nmax_client_conn = 2000\n"
            "server_tls_sslmode = require\nlog_connections = 0\nlog_disconnections = 0\n"
        )
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"] if os.geteuid() == 0 else []
        self.spawn([*user, shutil.which("pgbouncer") or "/usr/sbin/pgbouncer", "-q", settings], stderr=subprocess.DEVNULL)
        wait_port("127.0.0.1", self.bouncer_port)

    def start_haproxy(self):
        self.haproxy_port = free_port()
        settings = self.folder / "haproxy.cfg"
        settings.write_text(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
            f"listen database\n bind 127.0.0.1:{self.haproxy_port}\n server one 127.0.0.1:{self.database_port}\n"
        )
        self.spawn([shutil.which("haproxy") or "/usr/sbin/haproxy", "-q", "-f", settings])
        wait_port("127.0.0.1", self.haproxy_port)

    def ways(self):
        tls = {"PGSSLMODE": "require", "PGPASSWORD": PASSWORD}
        return {
            "direct TLS": ("127.0.0.1", self.database_port, "scram_user", tls),
            "bastion": (LISTEN, 5432, "anyone", {"PGSSLMODE": "disable"}),
            "PgBouncer": ("127.0.0.1", self.bouncer_port, "anyone", {"PGSSLMODE": "disable"}),
            "bastion tcp": (LISTEN, 6000, "scram_user", tls),
            "HAProxy tcp": ("127.0.0.1", self.haproxy_port, "scram_user", tls),
        }

    def pgbench(self, way, options):
        host, port, user, environment = self.ways()[way]
        command = ["pgbench", "-n", "-T", str(self.arguments.seconds), "-h", host, "-p", str(port), "-U", user, *options, "bench"]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{way}: {done.stderr}")
        return float(re.search(r"tps = ([\d.]+)", done.stdout)[1]), float(re.search(r"latency average = ([\d.]+)", done.stdout)[1])

    def latencies(self, way):
        """Median and 99th percentile of single-client selects, in ms."""
        log = self.folder / f"log-{way.replace(' ', '-')}"
        self.pgbench(way, ["-S", "-c", "1", "-l", f"--log-prefix={log}"])
        times = sorted(int(line.split()[2]) / 1000 for path in self.folder.glob(f"{log.name}*") for line in path.open())
        return statistics.median(times), times[len(times) * 99 // 100]

    def table(self, title, options):
        rounds = {way: [] for way in self.ways()}
        for _ in range(self.arguments.rounds):
            for way in rounds:
                rounds[way].append(self.pgbench(way, options)[0])
        tps = {way: statistics.median(values) for way, values in rounds.items()}
        print(
            f"{title:<26} {tps['direct TLS']:>9.0f} {tps['bastion']:>9.0f} {tps['PgBouncer']:>9.0f}"
            f" {tps['bastion'] / tps['direct TLS']:>8.2f} {tps['bastion'] / tps['PgBouncer']:>8.2f}"
            f" {tps['bastion tcp'] / tps['HAProxy tcp']:>8.2f}",
            flush=True,
        )

    def run(self):
        size = os.path.getsize(self.arguments.relay) / 1e6
        print(f"relay binary {size:.2f} MB ({size / 12:.2f} of 12 MB)")
        idle = rss_mb(self.relay.pid)
        print(f"relay RSS idle {idle:.1f} MB ({idle / 12:.2f} of 12 MB)")
        print(f"\n{'transactions per second':<26} {'direct':>9} {'bastion':>9} {'PgBouncer':>9} {'/direct':>8} {'/PgB':>8} {'tcp/HAP':>8}")
        for clients in (1, 16, 64):
            threads = ["-c", str(clients), "-j", str(min(clients, 2))]
            self.table(f"select, {clients} clients", ["-S", *threads])
        for clients in (1, 16, 64):
            self.table(f"read-write, {clients} clients", ["-c", str(clients), "-j", str(min(clients, 2))])
        self.table("new connections, 4 clients", ["-S", "-C", "-c", "4", "-j", "2"])
        print(f"\n{'latency of a select, ms':<26} {'median':>9} {'p99':>9} {'added':>9}")
        base = None
        for way in self.ways():
            median, p99 = self.latencies(way)
            base = base or median
            print(f"{way:<26} {median:>9.3f} {p99:>9.3f} {median - base:>9.3f}", flush=True)
        clients = []
        for _ in range(500):
            client = socket.create_connection((LISTEN, 5432))
            client.sendall(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0")
            answer = b""
            while not answer.endswith(b"Z\0\0\0\x05I"):
                answer += client.recv(4096)
            clients.append(client)
        used = rss_mb(self.relay.pid)
        print(f"\nrelay RSS with 500 idle clients {used:.1f} MB ({used / 60:.2f} of 60 MB)")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--relay", required=True)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    bench = Bench(parser.parse_args())
    try:
        bench.start()
        bench.run()
    finally:
        bench.close()


main()
