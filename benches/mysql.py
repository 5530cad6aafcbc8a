#!/usr/bin/env python3
"""The relay's MySQL login against HAProxy (TCP mode) and a direct TLS connection, with sysbench on a MariaDB of the sandbox.

On a machine whose cores sysbench and the server fill alone, any proxy takes its share from them: HAProxy, which only moves
bytes, shows how much that is at least.

Rounds are interleaved, medians are compared, and ratios are printed: the numbers of one machine mean little by
themselves. Started by scripts/bench.
"""

import argparse
import functools
import os
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "scripts"))

from measure import Crowd, interleaved, mysql_log_in, rss_kb  # noqa: E402
from stand import MYSQL_HOST, PASSWORD, Stand  # noqa: E402

LISTEN = "127.63.202.1"
# Another relay, which records every statement.
AUDITED = "127.63.202.2"
RELAY_PORT = 3306
IDLE, BUSY = 2000, 100


class Bench:
    def __init__(self, arguments, stand):
        self.arguments, self.stand = arguments, stand
        self.port = stand.ready["mariadb"]["port"]
        stand.mariadb("create database bench")
        for user in ("db_read", "native_user"):
            stand.mariadb(f"grant all on bench.* to {user}@'127.0.0.1'")
        root = [f"--mysql-socket={stand.ready['mariadb']['socket']}", "--mysql-user=root"]
        self.sysbench("oltp_read_write", [*root], "prepare")
        target = {
            "engine": "mysql", "host": MYSQL_HOST, "hostaddr": "127.0.0.1", "port": self.port, "database": "bench",
            "relay_port": RELAY_PORT, "credential": {"rds_iam": {"user": "db_read"}},
        }
        self.relay = stand.relay(arguments.relay, {"login": target}, LISTEN)
        stand.relay(arguments.relay, {"login": target}, AUDITED, audit="statements")
        self.client_certificate()
        self.haproxy_port = stand.haproxy(self.port)
        tls = ["--mysql-host=127.0.0.1", "--mysql-user=native_user", f"--mysql-password={PASSWORD}", "--mysql-ssl=on"]
        self.ways = {
            "direct": [*tls, f"--mysql-port={self.port}"],
            "HAProxy": [*tls, f"--mysql-port={self.haproxy_port}"],
            "bastion": [f"--mysql-host={LISTEN}", f"--mysql-port={RELAY_PORT}", "--mysql-user=anyone"],
            "audited": [f"--mysql-host={AUDITED}", f"--mysql-port={RELAY_PORT}", "--mysql-user=anyone"],
        }

    def client_certificate(self):
        """sysbench does TLS only with files of these names in its folder, though the server asks for none."""
        folder, sandbox = self.stand.folder, pathlib.Path(self.stand.ready["folder"])
        make = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=sysbench"]
        request = [*make, "-keyout", folder / "client-key.pem", "-out", folder / "client.csr"]
        sign = ["openssl", "x509", "-req", "-in", folder / "client.csr", "-CA", sandbox / "ca.pem", "-CAkey", sandbox / "ca.key"]
        for command in (request, [*sign, "-set_serial", "1", "-out", folder / "client-cert.pem"]):
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        (folder / "cacert.pem").symlink_to(sandbox / "ca.pem")

    def sysbench(self, test, options, action, threads=1):
        command = ["sysbench", test, "--mysql-db=bench", "--table-size=100000", f"--threads={threads}", "--percentile=99"]
        done = subprocess.run(
            [*command, f"--time={self.arguments.seconds}", *options, action], cwd=self.stand.folder, capture_output=True, text=True
        )
        if done.returncode != 0:
            sys.exit(f"sysbench {' '.join(options)}: {done.stdout}{done.stderr}")
        return done.stdout

    def rate(self, test, way, threads):
        return float(re.search(r"transactions:.*\(([\d.]+) per sec", self.sysbench(test, self.ways[way], "run", threads))[1])

    def p99(self):
        """The relay's, in ms, of a point select with BUSY clients."""
        output = self.sysbench("oltp_point_select", self.ways["bastion"], "run", BUSY)
        return float(re.search(r"99th percentile:\s+([\d.]+)", output)[1])

    def new_connections(self, way):
        """Connections per second that log in, ask once and leave, from four clients at a time; with a token both ways."""
        number = 100 * self.arguments.seconds
        options = ["--no-defaults", "--concurrency=4", f"--number-of-queries={number}", "--detach=1", "--query=select 1"]
        if way == "bastion":
            at = [f"-h{LISTEN}", f"-P{RELAY_PORT}", "-uanyone", "--skip-ssl"]
        else:
            token = self.stand.rds_token(f"{MYSQL_HOST}:{self.port}", "db_read")
            port = self.port if way == "direct" else self.haproxy_port
            at = ["-h127.0.0.1", f"-P{port}", "-udb_read", f"-p{token}", "--ssl"]
        started = time.monotonic()
        subprocess.run(["mariadb-slap", *options, *at, "--create-schema=bench"], check=True, capture_output=True)
        return number / (time.monotonic() - started)

    def audit(self):
        """What a record of every statement costs; short rounds, because both ways must meet the same machine."""
        print(f"\n{'with statement audit':<26} {'without':>9} {'with':>9} {'ratio':>8}")
        for clients in (1, 16, 64):
            measure = functools.partial(self.rate, "oltp_point_select", threads=clients)
            rates = interleaved(["bastion", "audited"], 3 * self.arguments.rounds, measure)
            ratio = rates["audited"] / rates["bastion"]
            title = f"point select, {clients} clients"
            print(f"{title:<26} {rates['bastion']:>9.0f} {rates['audited']:>9.0f} {ratio:>8.2f} (at least 0.95)", flush=True)

    def run(self):
        if self.arguments.only == "audit":
            return self.audit()
        titles = f"{'direct':>9} {'bastion':>9} {'HAProxy':>9} {'/direct':>8} {'/HAProxy':>8} {'HAProxy/direct':>15}"
        print(f"\n{'MySQL, per second':<26} {titles}")
        for test, title in (("oltp_point_select", "point select"), ("oltp_read_only", "read only"), ("oltp_read_write", "read-write")):
            for clients in (1, 16, 256):
                self.row(f"{title}, {clients} clients", lambda way: self.rate(test, way, clients))
        self.row("new connections, 4 clients", self.new_connections)
        self.audit()
        # The first crowd warms buffers and stacks up; what counts is what more connections cost.
        with Crowd(100, mysql_log_in, (LISTEN, RELAY_PORT)):
            before = rss_kb(self.relay.pid)
            alone = [self.p99() for _ in range(self.arguments.rounds)]
            with Crowd(IDLE - 100, mysql_log_in, (LISTEN, RELAY_PORT)):
                each = (rss_kb(self.relay.pid) - before) / (IDLE - 100)
                crowded = [self.p99() for _ in range(self.arguments.rounds)]
        print(f"\nrelay RSS for each idle connection {each:.1f} kB ({each / 40:.2f} of 40 kB)")
        alone, crowded = min(alone), min(crowded)
        print(
            f"p99 of {BUSY} busy clients {alone:.1f} ms, with {IDLE} idle ones {crowded:.1f} ms ({crowded / alone:.2f}, at most 1.5)"
        )

    def row(self, title, measure):
        rates = interleaved(["direct", "bastion", "HAProxy"], self.arguments.rounds, measure)
        direct, bastion, haproxy = rates["direct"], rates["bastion"], rates["HAProxy"]
        print(
            f"{title:<26} {direct:>9.0f} {bastion:>9.0f} {haproxy:>9.0f}"
            f" {bastion / direct:>8.2f} {bastion / haproxy:>8.2f} {haproxy / direct:>15.2f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--relay", required=True, type=os.path.abspath)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["audit"], help="this table alone")
    arguments = parser.parse_args()
    with Stand(arguments.programs) as stand:
        Bench(arguments, stand).run()


main()
