"""Folders of runs that nobody ran: what `fedgram compare` reads, with the figures that a test asks for."""

import csv
import json

SETTINGS = {
    "trainer.clients": 20,
    "trainer.participation": 1,
    "trainer.local_steps": 2,
    "trainer.clients_per_block": 5,
    "trainer.threads": 1,
    "model.backbone": "tiny",
    "model.pretrained": True,
    "model.monitor": "accuracy",
    "data.batch_size": 4,
    "data.fingerprint": "data",
    "data.groups": "labels",
    "data.partition": "Dirichlet",
    "data.partition.rho": 0.5,
    "method.rank": 4,
    "optimizer.lr": 0.001,
}
PARAMETERS = {"up": 1000, "down": 2000}
"""What all clients send and are sent in a round."""
CLIENT_FLOPS, SERVER_FLOPS = 3e9, 5e6
"""What all clients, and what the server, compute in a round."""


def write_run(
    folder,
    method="FLoRG",
    seed=0,
    accuracy=(0.5, 0.6, 0.7),
    settings=None,
    columns=None,
    parameters=PARAMETERS,
    flops=True,
    **summary,
):
    """Write summary.json and metrics.csv into a new version_N of ``folder/TASK-METHOD``, and return that.

    Args:
        accuracy: by round, from round 0, the evaluation before training, on; None where it was not evaluated.
        settings: what differs from `SETTINGS`.
        columns: further columns of metrics.csv by round, from round 0 on, such as ``{"drift": [None, 0.1, 0.2]}``; they
            replace those of the same name.
        parameters: of a round, up and down; four bytes each.
        flops: whether the run counted them; those of older versions did not.
        summary: what differs in summary.json, such as ``task="rte"``, ``rounds``, ``seconds`` or ``evaluated_samples``.
    """
    rounds = range(len(accuracy))
    sent = {f"parameters_{way}": [number * count for number in rounds] for way, count in parameters.items()}
    megabytes = {f"megabytes_{way}": [4e-6 * n * count for n in rounds] for way, count in parameters.items()}
    counted = {"client_flops": CLIENT_FLOPS, "server_flops": SERVER_FLOPS} if flops else {}
    table = {
        "round": list(rounds),
        **sent,
        **megabytes,
        "val_loss": [None if value is None else 1 - value for value in accuracy],
        "accuracy": list(accuracy),
        "train_loss": [None, *(1 / number for number in rounds[1:])],
        "seconds": [1.0] * len(rounds),
        **{key: [number * value for number in rounds] for key, value in counted.items()},
        **(columns or {}),
    }
    facts = {
        "method": method,
        "task": "task",
        "backbone": "tiny",
        "seed": seed,
        "rounds": rounds[-1],
        "initial": _metrics(accuracy[0]),
        "final": _metrics(accuracy[-1]),
        "best": {"round": rounds[-1], **_metrics(accuracy[-1])},
        **{key: values[-1] for key, values in sent.items()},
        **{f"bytes_{way}": 4 * rounds[-1] * count for way, count in parameters.items()},
        "personal_evaluation": None,
        "seconds": float(len(rounds)),
        "peak_megabytes": 512.0,
        **{key: rounds[-1] * value for key, value in counted.items()},
        "evaluated_samples": 10_000,
        "settings": SETTINGS | {"method": method, "trainer.seed": seed} | (settings or {}),
        "data_fingerprint": "data",
        **summary,
    }
    parent = folder / f"{facts['task']}-{method}"
    own = parent / f"version_{len(list(parent.glob('version_*')))}"
    own.mkdir(parents=True)
    (own / "summary.json").write_text(json.dumps(facts))
    with (own / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(table)
        rows.writerows(zip(*table.values(), strict=True))
    return own


def _metrics(accuracy):
    return {} if accuracy is None else {"loss": 1 - accuracy, "accuracy": accuracy}
