"""Counts of pairs without numpy, torch or speedrun: a script that speaks the protocol itself."""

import json
import math
import os
import struct
import sys
from array import array
from pathlib import Path

FRAME = struct.Struct("<4sII")
replies = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what prints goes to stderr


def send(**header):
    text = json.dumps(header).encode()
    replies.write(FRAME.pack(b"SRP1", len(text), 0) + text)
    replies.flush()


def receive():
    if len(head := sys.stdin.buffer.read(FRAME.size)) < FRAME.size:
        sys.exit()
    _, header_bytes, payload_bytes = FRAME.unpack(head)
    header = json.loads(sys.stdin.buffer.read(header_bytes))
    return header, array("q", sys.stdin.buffer.read(payload_bytes))


with Path(sys.argv[2]).open(
    "rb"
) as file:  # magic, version, two sizes, JSON, then the bytes as they are
    _, _, header_bytes, _ = struct.unpack("<8sHII", file.read(18))
    vocab_size = json.loads(file.read(header_bytes))["meta"]["vocab_size"]
    counts = [file.read(vocab_size) for _ in range(vocab_size)]
logs = [math.log(count + 0.5) for count in range(256)]
rows = [array("f", [logs[count] for count in row]).tobytes() for row in counts]

send(protocol=1, vocab_size=vocab_size, kind="fixed")
logits = os.open(receive()[0]["logits"], os.O_RDWR)
send()
while True:
    request, numbers = receive()
    batch, length = request["shape"]
    tokens, scored_from = numbers[: batch * length], numbers[batch * length :]
    asked = [
        tokens[row * length + place]
        for row in range(batch)
        for place in range(scored_from[row], length)
    ]
    os.pwrite(logits, b"".join(rows[token] for token in asked), 0)
    send(shape=[len(asked), vocab_size])
