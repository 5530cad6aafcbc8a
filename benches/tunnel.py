#!/usr/bin/env python3
"""The tunnel through the sandbox's gateway and agents, which are as slow as the real ones: one plain session, and lanes.

A server of this program behind a target of engine tcp gives and takes incompressible bytes and echoes; rows of rows.py lie
in the sandbox's PostgreSQL. Ratios are against the plain session in the same run, against the agent's own pauses (the
throttle), and against the official plugin as it was measured with the real agent; absolute numbers belong to the machine.
Needs only the standard library; started by scripts/bench.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "scripts"))

import rows  # noqa: E402
from measure import receive  # noqa: E402
from stand import free_port  # noqa: E402

MB = 1_000_000
# session-manager-plugin 1.2.707 with amazon-ssm-agent 3.3, by round trip in ms: connect + echo and ping, in ms; upload in
# MB/s. docs/benchmarks.md says how it was measured.
PLUGIN = {0: (3.5, 1.8, 0.72), 40: (44.0, 41.9, 0.80)}
CHUNK = 256 * 1024
# Of the idle ways: turns of each, and measurements in one.
TURNS, IN_A_TURN = 20, 10


class Peer(threading.Thread):
    """The far end: E echoes, D sends so many random bytes, U takes so many and answers with the seconds of the second half."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.noise = os.urandom(4 * MB)

    def run(self):
        while True:
            client, _ = self.listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with client, contextlib.suppress(OSError):
            order, length = receive(client, 1), struct.unpack("!Q", receive(client, 8))[0]
            if order == b"D":
                for start in range(0, length, len(self.noise)):
                    client.sendall(memoryview(self.noise)[: min(length - start, len(self.noise))])
            elif order == b"U":
                discard(client, length // 2)
                began = time.perf_counter()
                discard(client, length - length // 2)
                client.sendall(struct.pack("!d", time.perf_counter() - began))
            while part := client.recv(65536):
                client.sendall(part)


def discard(connection, length):
    buffer = bytearray(CHUNK)
    while length > 0:
        read = connection.recv_into(buffer, min(length, CHUNK))
        if read == 0:
            raise ConnectionError(f"closed {length} bytes too early")
        length -= read


def connect(port):
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(120)
    return connection


class Raw:
    """A connection to the far end above."""

    def __init__(self, port, order, length=0):
        self.connection = connect(port)
        self.connection.sendall(order + struct.pack("!Q", length))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def ping_ms(self):
        began = time.perf_counter()
        self.connection.sendall(b"x")
        receive(self.connection, 1)
        return (time.perf_counter() - began) * 1000


class Session:
    """A PostgreSQL connection, spoken by hand so that a query costs nothing here."""

    def __init__(self, port):
        self.connection = connect(port)
        body = b"\0\3\0\0user\0anyone\0\0"
        self.connection.sendall(struct.pack("!I", len(body) + 4) + body)
        self.until_ready()

    def until_ready(self):
        """Reads to ReadyForQuery; the bytes that came."""
        tail, total = b"", 0
        while not re.search(rb"Z\0\0\0\x05[ITE]\Z", tail):
            part = self.connection.recv(CHUNK)
            if not part:
                raise ConnectionError("the connection was closed")
            total += len(part)
            tail = (tail + part)[-16:]
        return total

    def query(self, sql):
        body = sql.encode() + b"\0"
        self.connection.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        return self.until_ready()

    def query_ms(self):
        began = time.perf_counter()
        self.query("select 1")
        return (time.perf_counter() - began) * 1000

    def copy_in(self, sql, lines):
        """COPY FROM STDIN; seconds until the server has said that it is done."""
        body = sql.encode() + b"\0"
        self.connection.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        answer = receive(self.connection, 5)
        if answer[:1] != b"G":
            raise ConnectionError(f"no COPY: {self.connection.recv(1000)}")
        receive(self.connection, struct.unpack("!I", answer[1:])[0] - 4)
        began = time.perf_counter()
        for start in range(0, len(lines), 64 * 1024):
            part = lines[start : start + 64 * 1024]
            self.connection.sendall(b"d" + struct.pack("!I", len(part) + 4) + part)
        self.connection.sendall(b"c\0\0\0\4")
        self.until_ready()
        return time.perf_counter() - began

    def close(self):
        self.connection.close()


class Process:
    """CPU seconds and memory of a process."""

    def __init__(self, pid):
        self.pid = pid

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self):
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{self.pid}/status").read_text())[1]) / 1024


class Quota:
    """A part of a CPU for one process, as a task's size gives it; needs root and a cgroup controller for cpu (v1 or v2)."""

    V1, V2 = pathlib.Path("/sys/fs/cgroup/cpu"), pathlib.Path("/sys/fs/cgroup")

    def __init__(self, process, cpus):
        version_1 = (self.V1 / "cpu.shares").exists()
        self.root = self.V1 if version_1 else self.V2
        self.group = self.root / f"bastion-bench-{process.pid}"
        self.group.mkdir()
        try:
            if version_1:
                (self.group / "cpu.cfs_quota_us").write_text(str(int(cpus * 100_000)))
            else:
                (self.root / "cgroup.subtree_control").write_text("+cpu")
                (self.group / "cpu.max").write_text(f"{int(cpus * 100_000)} 100000")
            (self.group / "cgroup.procs").write_text(str(process.pid))
        except OSError:
            self.group.rmdir()
            raise
        self.process = process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        (self.root / "cgroup.procs").write_text(str(self.process.pid))
        self.group.rmdir()


class Up:
    """`bastion up demo` with so many lanes, until its end."""

    def __init__(self, bench, lanes):
        ports = [option for name in ("orders", "peer") for option in ("--local-port", f"{name}={free_port()}")]
        self.child = subprocess.Popen(
            [bench.bastion, "up", "demo", "--access", "write", "--json", "--keep", "--lanes", str(lanes), *ports],
            env=bench.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=bench.folder.name,
        )
        self.ports = {}
        for line in self.child.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                self.ports = {target["name"]: target["port"] for target in event["targets"]}
                if lanes == 0:
                    break
            if event["event"] == "lanes" and event["open"] == lanes:
                break
        else:
            sys.exit("bastion up has ended")
        threading.Thread(target=self.child.stdout.read, daemon=True).start()
        self.launcher = Process(self.child.pid)

    def end(self):
        self.child.send_signal(signal.SIGINT)
        self.child.wait(60)


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        programs = pathlib.Path(arguments.programs).resolve()
        self.bastion = programs / "bastion"
        self.peer = Peer()
        self.peer.start()
        self.folder = tempfile.TemporaryDirectory(prefix="bastion-bench-")
        self.sandbox = subprocess.Popen(
            [programs / "bastion-sandbox", "up", "--tcp", f"peer={self.peer.port}"], stdout=subprocess.PIPE, text=True
        )
        self.ready = json.loads(self.sandbox.stdout.readline())
        self.environment = {**os.environ, **self.ready["callers"]["alice"], "HOME": self.folder.name}
        self.rows = b"".join(rows.rows(arguments.megabytes * MB, 1))
        self.fill()

    def close(self):
        subprocess.run([self.bastion, "down", "demo", "--access", "write"], env=self.environment, capture_output=True)
        self.sandbox.send_signal(signal.SIGTERM)
        self.sandbox.wait(60)
        self.folder.cleanup()

    def psql(self, sql, data=None):
        database = self.ready["database"]
        at = ["-h", database["socket_folder"], "-p", str(database["port"]), "-U", "postgres", "-d", "orders"]
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *at, "-c", sql], input=data, check=True, stdout=subprocess.DEVNULL)

    def fill(self):
        columns = ", ".join(f"{name.strip()} text" for name in rows.COLUMNS.split(","))
        self.psql(f"create table bench ({columns}); create unlogged table sink (line text);"
                  "grant select on bench to db_write; grant insert, truncate on sink to db_write")
        self.psql("copy bench from stdin", self.rows)

    def sandbox_says(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.ready["endpoint"] + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def round_trip(self, milliseconds):
        one_way = {side: {"latency_ms": milliseconds // 2} for side in ("up", "down")}
        self.sandbox_says("/_sandbox/gateway", {"knobs": one_way})

    def relay(self):
        """The task's process, a child of the sandbox."""
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                command = (path.parent / "cmdline").read_bytes().split(b"\0")
                parent = path.read_text().rsplit(")", 1)[1].split()[1]
                if int(parent) == self.sandbox.pid and command[1:2] == [b"relay"]:
                    return Process(int(path.parent.name))
        sys.exit("the task's relay is not there")

    def idle(self, ways):
        """Medians of a ping and of a query, for each way: in turns, so that what else the machine does falls on all of them."""
        ups = [Up(self, lanes) for lanes in ways]
        try:
            lines = [(Raw(up.ports["peer"], b"E"), Session(up.ports["orders"])) for up in ups]
            times = [([], []) for _ in ways]
            for turn in range(TURNS):
                for way in sorted(range(len(ways)), reverse=turn % 2 == 1):
                    for measure, seen in zip((lines[way][0].ping_ms, lines[way][1].query_ms), times[way]):
                        seen.extend(self.paced(measure, IN_A_TURN))
            for line in lines:
                for end in line:
                    end.connection.close()
        finally:
            for up in ups:
                up.end()
        return [{"ping": statistics.median(pings), "query": statistics.median(queries)} for pings, queries in times]

    def measure(self, lanes):
        """What one way does, by name."""
        up = Up(self, lanes)
        try:
            return self.measure_up(up, lanes)
        finally:
            up.end()

    def measure_up(self, up, lanes):
        row, peer, orders = {}, up.ports["peer"], up.ports["orders"]
        relay = self.relay()

        def first_echo():
            began = time.perf_counter()
            with Raw(peer, b"E") as raw:
                raw.ping_ms()
            return (time.perf_counter() - began) * 1000

        row["connect"] = statistics.median(first_echo() for _ in range(21))
        session = Session(orders)

        # The agents' pauses are the ceiling; a fill of all queues first, so that what is measured is a steady state.
        megabytes = self.arguments.noise * max(lanes, 1)
        with Raw(peer, b"D", megabytes * MB) as raw:
            discard(raw.connection, megabytes * MB // 4)
            before, began, used = self.sandbox_says("/_sandbox/throttle"), time.perf_counter(), (up.launcher.cpu(), relay.cpu())
            rest = megabytes * MB - megabytes * MB // 4
            discard(raw.connection, rest)
            row["noise"] = rest / MB / (time.perf_counter() - began)
            after = self.sandbox_says("/_sandbox/throttle")
            row["throttle"] = (after["bytes"] - before["bytes"]) / MB / (after["slept_s"] - before["slept_s"]) * max(lanes, 1)
            row["cpu_down"], row["relay_down"] = ((now - then) * 1e9 / rest for now, then in zip((up.launcher.cpu(), relay.cpu()), used))

        began, used = time.perf_counter(), (up.launcher.cpu(), relay.cpu())
        brought = session.query("copy bench to stdout")
        row["rows"] = brought / MB / (time.perf_counter() - began)
        row["cpu_rows"], row["relay_rows"] = ((now - then) * 1e9 / brought for now, then in zip((up.launcher.cpu(), relay.cpu()), used))

        sent, used = self.arguments.upload * MB, up.launcher.cpu()
        with Raw(peer, b"U", sent) as raw:
            for start in range(0, sent, len(self.peer.noise)):
                raw.connection.sendall(memoryview(self.peer.noise)[: min(sent - start, len(self.peer.noise))])
            row["upload"] = (sent - sent // 2) / MB / struct.unpack("!d", receive(raw.connection, 8))[0]
        row["cpu_up"] = (up.launcher.cpu() - used) * 1e9 / sent
        # Several times, because the session's messages have grown by then.
        copies = [len(self.rows) / MB / session.copy_in("copy sink from stdin", self.rows) for _ in range(3)]
        row["copy"] = statistics.median(copies)
        self.psql("truncate sink")

        stop = threading.Event()
        bulk = threading.Thread(target=self.download_until, args=(peer, stop))
        bulk.start()
        time.sleep(1)
        row["loaded"] = statistics.median(self.paced(session.query_ms, 60))
        stop.set()
        bulk.join()
        row["rss"] = up.launcher.peak_mb()
        session.close()
        return row

    @staticmethod
    def paced(measure, count):
        for _ in range(count):
            yield measure()
            time.sleep(0.005)

    @staticmethod
    def download_until(port, stop):
        with Raw(port, b"D", 1000 * MB) as raw:
            while not stop.is_set():
                discard(raw.connection, 64 * 1024)

    def run(self):
        for round_trip in self.arguments.round_trips:
            self.round_trip(round_trip)
            lanes = self.arguments.lanes
            idle = self.idle(lanes)
            busy = (self.measure(number) for number in lanes)
            ways = {(f"{number} lanes" if number else "plain"): {**alone, **row} for number, alone, row in zip(lanes, idle, busy)}
            self.print_table(round_trip, ways)
        self.task_sizes(max(self.arguments.lanes))

    def task_sizes(self, lanes):
        """Rows through a relay with a part of a CPU; in a task the agent takes its part of the same CPU."""
        self.round_trip(0)
        up = Up(self, lanes)
        try:
            relay, session = self.relay(), Session(up.ports["orders"])
            print(f"\n{f'relay, {lanes} lanes':<18}{'rows MB/s':>12}{'CPU s/GB':>12}")
            for cpus in (0.25, 0.5, 1):
                try:
                    with Quota(relay, cpus):
                        began, used = time.perf_counter(), relay.cpu()
                        brought = session.query("copy bench to stdout")
                        took, used = time.perf_counter() - began, relay.cpu() - used
                except OSError as error:
                    print(f"no quota can be set here: {error}")
                    break
                print(f"{f'{cpus} vCPU':<18}{brought / MB / took:>12.2f}{used * 1e9 / brought:>12.1f}", flush=True)
            session.close()
        finally:
            up.end()

    @staticmethod
    def print_table(round_trip, ways):
        columns = {
            "rows": "rows MB/s", "noise": "noise MB/s", "upload": "upload MB/s", "copy": "COPY MB/s", "connect": "connect ms",
            "ping": "ping ms", "query": "query ms", "loaded": "loaded ms", "cpu_down": "CPU s/GB", "cpu_up": "up s/GB", "rss": "RSS MB",
        }
        print(f"\n{f'round trip {round_trip} ms':<18}" + "".join(f"{title:>12}" for title in columns.values()))
        for name, row in ways.items():
            print(f"{name:<18}" + "".join(f"{row[key]:>12.2f}" for key in columns), flush=True)
        plain = ways.get("plain")
        for name, row in ways.items():
            if plain and row is not plain:
                print(f"{name + ' / plain':<18}" + "".join(f"{row[key] / plain[key]:>12.2f}" for key in columns))
        for name, row in ways.items():
            print(
                f"{name}: {row['noise'] / row['throttle']:.2f} of the agents' throttle; query under load {row['loaded'] / row['query']:.2f}"
                f" of its time alone; relay {row['relay_down']:.1f} CPU s/GB of noise, {row['relay_rows']:.1f} of rows;"
                f" launcher {row['cpu_rows']:.1f} of rows"
            )
        if plain and round_trip in PLUGIN:
            connect_ms, ping_ms, upload = PLUGIN[round_trip]
            print(
                f"plain / official plugin: connect {plain['connect'] / connect_ms:.2f}, ping {plain['ping'] / ping_ms:.2f},"
                f" upload {plain['upload'] / upload:.1f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True, help="folder of bastion and bastion-sandbox")
    parser.add_argument("--round-trips", type=int, nargs="*", default=[0, 40], metavar="MS")
    parser.add_argument("--lanes", type=int, nargs="*", default=[0, 4, 8], metavar="N")
    parser.add_argument("--megabytes", type=int, default=16, help="of rows")
    parser.add_argument("--noise", type=int, default=4, help="incompressible megabytes for each session")
    parser.add_argument("--upload", type=int, default=96, help="megabytes up")
    bench = Bench(parser.parse_args())
    try:
        bench.run()
    finally:
        bench.close()


if __name__ == "__main__":
    main()
