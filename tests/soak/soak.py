"""Many clients with mixed work through one `bastion up`, and a fault of the network every few seconds.

Every fault is one that an open connection must survive, so an error, a wrong byte or a connection that stands still is a
failure. Memory of launcher and relay is looked at every minute. Started by scripts/soak, which has the drivers.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import psycopg
import pymysql

# An operation that takes longer than every repair of the tunnel together stands still.
STUCK = 180
# Memory after the first minutes is what the work needs; more than this on top is a leak.
GROWTH_MB = 24
WARM_UP = 180
ROWS = 5_000


def expected_rows():
    return hashlib.sha256("".join(f"{n}:{n * n};" for n in range(1, ROWS + 1)).encode()).hexdigest()


ROWS_DIGEST = expected_rows()


class Postgres:
    def __init__(self, port):
        self.connection = psycopg.connect(host="127.0.0.1", port=port, user="anyone", dbname="orders", autocommit=True, connect_timeout=STUCK)
        # Read access begins transactions read-only; a temporary table wants another one.
        self.connection.read_only = False

    def one(self, sql, *values):
        return self.connection.execute(sql, values).fetchone()

    def echo(self, text):
        return self.one("select md5(%s::text), %s::text", text, text)

    def rows(self):
        cursor = self.connection.execute(f"select n, n::bigint * n from generate_series(1, {ROWS}) n")
        return hashlib.sha256("".join(f"{n}:{square};" for n, square in cursor).encode()).hexdigest()

    def copy(self):
        with self.connection.cursor() as cursor, cursor.copy(f"copy (select n, n::bigint * n from generate_series(1, {ROWS}) n) to stdout") as copy:
            text = b"".join(copy).decode()
        return hashlib.sha256(text.replace("\t", ":").replace("\n", ";").encode()).hexdigest()

    def transaction(self, number):
        with self.connection.transaction():
            self.connection.execute("create temp table if not exists soak (n bigint)")
            self.connection.execute("insert into soak select %s from generate_series(1, 100)", (number,))
            found = self.one("select count(*), min(n), max(n) from soak where n = %s", number)
            self.connection.execute("delete from soak")
        return found

    def close(self):
        self.connection.close()


class Mysql(Postgres):
    def __init__(self, port):
        self.connection = pymysql.connect(host="127.0.0.1", port=port, user="anyone", autocommit=True, charset="utf8mb4", connect_timeout=STUCK)

    def one(self, sql, *values):
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchone()

    def echo(self, text):
        return self.one("select md5(%s), %s", text, text)

    def rows(self):
        with self.connection.cursor() as cursor:
            cursor.execute(f"select seq, seq * seq from seq_1_to_{ROWS}")
            return hashlib.sha256("".join(f"{n}:{square};" for n, square in cursor).encode()).hexdigest()

    copy = rows

    def transaction(self, number):
        self.connection.begin()
        with self.connection.cursor() as cursor:
            cursor.execute("select count(*), min(%s), max(%s) from seq_1_to_100", (number, number))
            found = cursor.fetchone()
        self.connection.commit()
        return found


class Soak:
    def __init__(self, arguments):
        self.arguments = arguments
        self.random = random.Random(arguments.seed)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="bastion-soak-"))
        self.folder.chmod(0o755)
        self.counts = collections.Counter()
        self.faults = collections.Counter()
        self.failures = []
        self.busy = {}
        self.lock = threading.Lock()
        self.over = threading.Event()

    def fail(self, text):
        with self.lock:
            self.failures.append(f"{time.monotonic() - self.began:.0f} s: {text}")
        print(f"FAILURE {self.failures[-1]}", flush=True)

    def start(self):
        programs = pathlib.Path(self.arguments.programs).resolve()
        self.sandbox = subprocess.Popen([programs / "bastion-sandbox", "up"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.ready = json.loads(self.sandbox.stdout.readline())
        environment = {**os.environ, **self.ready["callers"]["alice"], "HOME": str(self.folder)}
        self.up = subprocess.Popen(
            [programs / "bastion", "up", "demo", "--json", *self.arguments.up],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment, cwd=self.folder,
        )
        for line in self.up.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                break
        else:
            sys.exit("bastion up ended; what it said stands above")
        self.events, self.began = [], time.monotonic()
        threading.Thread(target=self.listen, daemon=True).start()
        kinds = {"postgres": Postgres, "mysql": Mysql}
        # Targets that refuse every login are there for other tests.
        self.targets = [(kinds[target["engine"]], target["port"]) for target in event["targets"]
                        if target["engine"] in kinds and "admin" not in target["name"]]
        print(f"targets: {', '.join(f'{kind.__name__} on {port}' for kind, port in self.targets)}", flush=True)

    def listen(self):
        for line in self.up.stdout:
            event = json.loads(line)
            self.events.append(event)
            if event["event"] == "warning":
                print(f"launcher, {time.monotonic() - self.began:.0f} s: {event['message']}", flush=True)

    def admin(self, path, document):
        request = urllib.request.Request(f"{self.ready['endpoint']}/_sandbox/{path}", json.dumps(document).encode(), {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()

    def client(self, number):
        pick = random.Random(self.arguments.seed * 1000 + number)
        kind, port = self.targets[number % len(self.targets)]
        connection = None
        while not self.over.is_set():
            work = pick.choices(["small", "echo", "rows", "copy", "transaction", "reconnect", "idle"], [40, 10, 5, 5, 10, 5, 25])[0]
            self.busy[number] = (time.monotonic(), f"{kind.__name__} {work}")
            try:
                if connection is None:
                    connection = kind(port)
                self.work(connection, work, pick)
                if work == "reconnect":
                    connection.close()
                    connection = None
                with self.lock:
                    self.counts[work] += 1
            except Exception as error:
                self.fail(f"client {number}, {kind.__name__}, {work}: {type(error).__name__}: {error}")
                connection = None
            finally:
                self.busy.pop(number, None)
            if work == "idle":
                self.over.wait(pick.uniform(0, 10))
        if connection is not None:
            connection.close()

    def work(self, connection, work, pick):
        def same(what, seen, wanted):
            if seen != wanted:
                self.fail(f"wrong bytes in {what}: {str(seen)[:80]!r} instead of {str(wanted)[:80]!r}")

        if work == "small":
            number = pick.randrange(10**6)
            same(work, int(connection.one("select %s * 7", number)[0]), number * 7)
        elif work == "echo":
            text = "".join(pick.choices("abcdefghij äöü片山葵", k=pick.randrange(1, 20_000)))
            same(work, connection.echo(text), (hashlib.md5(text.encode()).hexdigest(), text))
        elif work in ("rows", "copy"):
            same(work, getattr(connection, work)(), ROWS_DIGEST)
        elif work == "transaction":
            number = pick.randrange(1, 10**6)
            count, low, high = connection.transaction(number)
            same(work, (int(count), int(low), int(high)), (100, number, number))

    def fault(self):
        """One fault that open connections must survive."""
        odds = {"drop": 0.01, "duplicate": 0.01, "reorder": 0.02}
        bad = {"latency_ms": self.random.randrange(40), "data": odds, "ack": odds}
        name, change = self.random.choice([
            ("cut of the websocket", {"event": "cut_client"}),
            ("close 1000 Bye", {"event": "bye"}),
            ("cut of the agent", {"event": "cut_agent"}),
            ("silent websocket", {"event": "freeze_client"}),
            ("lost data", {"event": {"drop_next": {"direction": self.random.choice(["up", "down"]), "kind": "data", "count": self.random.randrange(1, 30)}}}),
            ("lost acknowledgements", {"event": {"drop_next": {"direction": self.random.choice(["up", "down"]), "kind": "ack", "count": self.random.randrange(1, 30)}}}),
            ("bad network", {"knobs": {"up": bad, "down": bad, "when_down": self.random.choice(["drop", "hold"])}}),
            ("good network", {"knobs": {}}),
        ])
        with self.lock:
            self.faults[name] += 1
        self.admin("gateway", change)

    def relay_log(self):
        """What the relay has said of itself, without its INFO lines."""
        lines = [line for path in pathlib.Path(self.ready["folder"]).rglob("task-*.log") for line in path.read_text().splitlines()]
        return [line for line in lines if '"level":"WARN"' in line or '"level":"ERROR"' in line]

    def memory(self):
        def rss(pid):
            text = pathlib.Path(f"/proc/{pid}/status").read_text()
            return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024

        relay = subprocess.run(["pgrep", "-P", str(self.sandbox.pid), "-f", "bastion relay"], capture_output=True, text=True).stdout.split()
        return rss(self.up.pid), rss(relay[0]) if relay else 0.0

    def run(self):
        self.began = time.monotonic()
        clients = [threading.Thread(target=self.client, args=(number,), daemon=True) for number in range(self.arguments.clients)]
        for client in clients:
            client.start()
        end = self.began + self.arguments.minutes * 60
        samples, next_fault, next_look = [], self.began + 5, self.began + 60
        while time.monotonic() < end and self.up.poll() is None:
            time.sleep(0.5)
            now = time.monotonic()
            if now >= next_fault:
                self.fault()
                next_fault += self.arguments.every
            for number, (since, what) in list(self.busy.items()):
                if now - since > STUCK:
                    self.fail(f"client {number} stands still for {now - since:.0f} s in {what}")
                    self.busy[number] = (now, what)
            if now >= next_look:
                launcher, relay = self.memory()
                samples.append((now - self.began, launcher, relay))
                done = sum(self.counts.values())
                print(f"{now - self.began:5.0f} s  {done} operations, {sum(self.faults.values())} faults, {len(self.failures)} failures, "
                      f"launcher {launcher:.1f} MB, relay {relay:.1f} MB", flush=True)
                next_look += 60
        if self.up.poll() is not None:
            self.fail(f"bastion up ended with exit {self.up.returncode}")
        self.admin("gateway", {"knobs": {}})
        for line in self.relay_log()[-20:]:
            print(f"relay: {line}", flush=True)
        self.over.set()
        for client in clients:
            client.join(STUCK)
            if client.is_alive():
                self.fail("a client does not come to its end")
        warm = [sample for sample in samples if sample[0] >= WARM_UP]
        for name, column in (("launcher", 1), ("relay", 2)):
            if len(warm) > 1 and warm[-1][column] - warm[0][column] > GROWTH_MB:
                self.fail(f"the memory of the {name} grew from {warm[0][column]:.1f} to {warm[-1][column]:.1f} MB")

    def close(self):
        for child, how in ((self.up, signal.SIGINT), (self.sandbox, signal.SIGTERM)):
            child.send_signal(how)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()

    def report(self):
        closed = next((event for event in self.events if event["event"] == "closed"), {})
        print(f"\noperations: {dict(self.counts)}\nfaults: {dict(self.faults)}\nclosing line: {closed}")
        print(f"failures: {len(self.failures)}")
        for failure in self.failures[:20]:
            print(f"  {failure}")
        return 1 if self.failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--every", type=float, default=5, help="seconds between faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("up", nargs="*", help="further arguments of bastion up, after --")
    soak = Soak(parser.parse_args())
    soak.start()
    try:
        soak.run()
    finally:
        soak.close()
    sys.exit(soak.report())


main()
