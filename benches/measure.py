"""What both benchmarks measure with: interleaved rounds, memory, and crowds of idle clients."""

import concurrent.futures
import pathlib
import re
import socket
import statistics
import struct


def interleaved(ways, rounds, measure):
    """The median of each way; every way once, then again, so that a slow moment of the machine hits them all."""
    values = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            values[way].append(measure(way))
    return {way: statistics.median(measured) for way, measured in values.items()}


def rss_kb(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1])


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[len(ordered) * percent // 100]


class Crowd:
    """Logged-in clients that say nothing, as a context manager."""

    def __init__(self, number, log_in, address):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.clients = list(pool.map(lambda _: log_in(socket.create_connection(address, 60)), range(number)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.close()


def postgres_log_in(client):
    """Any user, no password, until ReadyForQuery."""
    client.sendall(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0")
    answer = b""
    while not answer.endswith(b"Z\0\0\0\x05I"):
        answer += receive(client, 1)
    return client


def mysql_log_in(client):
    """Any user, no password, until OK."""
    read_packet(client)
    # CLIENT_LONG_PASSWORD | PROTOCOL_41 | TRANSACTIONS | SECURE_CONNECTION | PLUGIN_AUTH, packets to 16 MB, utf8mb4
    answer = struct.pack("<IIB23x", 0x1 | 0x200 | 0x2000 | 0x8000 | 0x80000, 1 << 24, 45)
    write_packet(client, 1, answer + b"anyone\0\0mysql_native_password\0")
    number, packet = read_packet(client)
    while packet[0] != 0:
        if packet[0] == 0xFF:
            raise ConnectionError(packet[9:].decode())
        # Asked for another way to log in: there is no password in any.
        write_packet(client, number + 1, b"")
        number, packet = read_packet(client)
    return client


def write_packet(client, number, payload):
    client.sendall(len(payload).to_bytes(3, "little") + bytes([number]) + payload)


def read_packet(client):
    header = receive(client, 4)
    return header[3], receive(client, int.from_bytes(header[:3], "little"))


def receive(client, length):
    data = b""
    while len(data) < length:
        more = client.recv(length - len(data))
        if not more:
            raise ConnectionError(f"closed after {len(data)} of {length} bytes: {data[:200]!r}")
        data += more
    return data
