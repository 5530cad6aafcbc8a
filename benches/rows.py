"""Rows as pg_dump writes them (COPY text format): an orders table with numbers, dates, UUIDs, names and free text.

    python3 benches/rows.py BYTES [SEED] >rows.copy

The same arguments give the same bytes. Numbers and dates follow one another as in a real table, names and words come as
often as in real text (Zipf), UUIDs are random (version 4) and cannot be compressed to less than half.
"""

import datetime
import random
import sys

FIRST = """Aiko Alice Amara Ben Carla Chen David Elena Emma Farid Grace Hana Hiroshi Ines Ivan Jamal Jonas Julia Kenji Lena Liam
Lucia Maria Mateo Mei Mia Mohammed Nadia Noah Olga Omar Paul Priya Rosa Ryo Sara Sofia Tom Yuki Zoe""".split()
LAST = """Abe Ahmed Andersson Bauer Brown Chen Costa Diaz Dubois Evans Fischer Garcia Haddad Hansen Ito Jansen Johnson Kato Kim
Kowalski Kumar Lee Lopez Martin Meyer Mori Mueller Nakamura Nguyen Novak Okafor Patel Rossi Sato Schmidt Silva Smith Suzuki Tanaka
Wang Weber Yamamoto Zhang""".split()
WORDS = """the to and please of in for on with order delivery customer address call not before after left at door new invoice
payment refund item replaced size colour was is has been sent again by post box number floor ring bell twice gift wrap note birthday
fragile leave neighbour urgent confirm phone email changed cancel partial second shipment warehouse returned damaged package express
standard evening morning monday friday weekend office reception contact manager discount applied coupon code tax company account
department purchase reference warranty serial model battery cable charger screen cover missing""".split()
STATUS = ["delivered"] * 12 + ["shipped"] * 4 + ["paid"] * 2 + ["cancelled", "returned"]
COUNTRY = ["DE", "JP", "US", "FR", "GB", "IT", "ES", "NL", "BR", "IN"]
COLUMNS = "id, customer_id, customer, email, token, placed_at, paid_at, status, country, amount, weight_kg, note"


def uuid4(pick):
    text = f"{pick.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) % 4]}{text[17:20]}-{text[20:]}"


def rows(size, seed):
    """Yields lines until `size` bytes are reached."""
    pick = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    placed = datetime.datetime(2026, 1, 1, 8, 0, 0)
    total, number = 0, 1_000_000
    while total < size:
        number += 1
        placed += datetime.timedelta(microseconds=pick.randrange(60_000_000))
        first, last = pick.choice(FIRST), pick.choice(LAST)
        paid = placed + datetime.timedelta(seconds=pick.randrange(90_000))
        note = " ".join(pick.choices(WORDS, weights, k=pick.randrange(0, 16))) or r"\N"
        line = "\t".join((
            str(number), str(pick.randrange(1, 60_000)), f"{first} {last}",
            f"{first}.{last}{pick.randrange(100)}@example.{pick.choice(['com', 'org', 'net'])}".lower(), uuid4(pick),
            f"{placed:%Y-%m-%d %H:%M:%S.%f}+00", r"\N" if pick.random() < 0.1 else f"{paid:%Y-%m-%d %H:%M:%S}+00",
            pick.choice(STATUS), pick.choice(COUNTRY), f"{pick.lognormvariate(4, 1):.2f}", f"{pick.random() * 20:.3f}", note,
        )) + "\n"
        total += len(line)
        yield line.encode()


if __name__ == "__main__":
    for line in rows(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1):
        sys.stdout.buffer.write(line)
