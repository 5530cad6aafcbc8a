#!/usr/bin/env python3
"""Writes parts.svg beside this file: what runs where, and where a connection and a credential go.

With --check it only compares: the committed picture must be what this script writes.
"""

import pathlib
import sys
from xml.sax.saxutils import escape

PICTURE = pathlib.Path(__file__).with_name("parts.svg")
WIDTH, HEIGHT = 900, 500
INK, SOFT, PAPER, PLACE, PART, OWN = "#1f2328", "#59636e", "#ffffff", "#f3f5f8", "#ffffff", "#dbeafe"

# Places: title, left, width.
PLACES = [("laptop", 20, 180), ("AWS", 280, 180), ("Fargate task", 540, 160), ("services", 745, 140)]
PLACE_TOP, PLACE_HEIGHT = 20, 270
# Rows of parts.
UPPER, LOWER, PART_HEIGHT = 70, 190, 70
# Parts: lines of text, left, top, width, whether it is this project's.
PARTS = [
    (("database client", "psql, DataGrip, …"), 35, UPPER, 150, False),
    (("bastion up", "the launcher"), 35, LOWER, 150, True),
    (("AWS API", "ECS, SSM, STS"), 295, UPPER, 150, False),
    (("Session Manager", "ssmmessages"), 295, LOWER, 150, False),
    (("bastion relay", "127.0.0.1:7070"), 552, UPPER, 136, True),
    (("agent", "of ECS Exec"), 552, LOWER, 136, False),
    (("database", "RDS, Aurora"), 757, UPPER, 116, False),
    (("credentials", "IAM, Secrets", "Manager, Vault"), 757, LOWER, 116, False),
]
# Arrows: number, from, to, dashed.
ARROWS = [
    (1, (110, UPPER + PART_HEIGHT), (110, LOWER), False),
    (2, (185, LOWER + 12), (295, UPPER + PART_HEIGHT - 12), False),
    (3, (445, UPPER + 35), (540, UPPER + 35), True),
    (4, (185, LOWER + 45), (295, LOWER + 45), False),
    (5, (445, LOWER + 45), (552, LOWER + 45), False),
    (6, (620, LOWER), (620, UPPER + PART_HEIGHT), False),
    (7, (688, UPPER + PART_HEIGHT - 12), (757, LOWER + 12), False),
    (8, (688, UPPER + 30), (757, UPPER + 30), False),
]
STEPS = [
    "The client connects to a port on 127.0.0.1, with any user name and an empty password.",
    "The launcher asks ECS to start the task (RunTask) and SSM to open sessions to it (StartSession).",
    "ECS starts the task; BASTION_OWNER in it names the person who started it.",
    "The launcher opens a signed websocket for each session. Together the sessions carry one link.",
    "Session Manager carries the bytes to the agent. The task needs no ingress: its agent connects outwards.",
    "The agent connects to the relay, which serves callers only once they have proven who they are.",
    "The relay signs a token with the task role's keys, or gets a login from Secrets Manager or Vault.",
    "The relay verifies the database's certificate, logs in, and then passes the bytes.",
]


def text(x, y, words, size=13, weight="normal", anchor="middle", fill=INK):
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def box(x, y, width, height, fill, stroke):
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'


def number(x, y, n):
    return f'<circle cx="{x}" cy="{y}" r="10" fill="{INK}"/>\n' + text(x, y + 4, str(n), 12, "bold", fill=PAPER)


def picture():
    """The SVG, a line for each element."""
    title = "What runs where: laptop, Session Manager, Fargate task, database"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        "<!-- Made by docs/pictures/parts.py; change that. -->",
        f"<title>{title}</title>",
        f'<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M 0 0 L 10 5 L 0 10 z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
    ]
    for name, left, width in PLACES:
        lines.append(box(left, PLACE_TOP, width, PLACE_HEIGHT, PLACE, SOFT))
        lines.append(text(left + width // 2, PLACE_TOP + 28, name, 14, "bold", fill=SOFT))
    for words, left, top, width, own in PARTS:
        lines.append(box(left, top, width, PART_HEIGHT, OWN if own else PART, INK))
        first = top + PART_HEIGHT // 2 + 4 - 9 * (len(words) - 1)
        for row, line in enumerate(words):
            size, weight = (14, "bold") if row == 0 else (12, "normal")
            lines.append(text(left + width // 2, first + 18 * row, line, size, weight))
    for n, (x1, y1), (x2, y2), dashed in ARROWS:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        ends = f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"'
        lines.append(f'<line {ends} stroke="{INK}" stroke-width="1.5"{dash} marker-end="url(#tip)"/>')
        lines.append(number((x1 + x2) // 2, (y1 + y2) // 2, n))
    for n, step in enumerate(STEPS, 1):
        y = PLACE_TOP + PLACE_HEIGHT + 12 + 23 * n
        lines.append(number(34, y - 4, n))
        lines.append(text(54, y, step, 13, anchor="start"))
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PICTURE.write_text(picture(), encoding="utf-8")
    elif not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture():
        sys.exit("Error: docs/pictures/parts.svg is not what docs/pictures/parts.py writes\nHint: docs/pictures/parts.py")
