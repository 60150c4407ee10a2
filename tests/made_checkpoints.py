"""What a checkpoint of a run says beside its tensors, for tests that make checkpoints by hand."""

import hashlib
import json
import struct

SETTINGS = {
    "trainer.clients": 5,
    "trainer.participation": 1.0,
    "trainer.seed": 3,
    "trainer.clients_per_block": 2,
    "trainer.threads": 1,
    "model.monitor": "accuracy",
}
PROGRESS = {
    "totals": [{"direction": "up", "part": "adapter", "clients": 5, "parameters": 2**30, "bytes": 2**40}],
    "seconds": 0.1,
    "seconds_training": 0.1,
    "initial": {},
    "metrics": {"accuracy": 0.5},
    "best": {"accuracy": 0.5, "round": 1},
    "devices": ["cpu"],
}


def parts_of(content):
    """Return what a checkpoint says, the header and the bytes of its tensors."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    return json.loads(header["__metadata__"]["fedgram"]), header, content[8 + length :]


def resigned(facts, header, data):
    """Return a checkpoint of altered content whose digest is made anew."""
    unsigned = "0" * 64
    if isinstance(facts, dict) and "digest" in facts:
        facts = facts | {"digest": unsigned}
    header = header | {"__metadata__": {"fedgram": json.dumps(facts)}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + data
    return content.replace(unsigned.encode(), hashlib.sha256(content).hexdigest().encode(), 1)
