"""A fit on some processes, and then tests of it on data whose classes are in another order."""

import json
import os
from dataclasses import replace
from pathlib import Path

from blank_pictures import partition_picture
from distributed.fits import parts_of
from fedgram import TextClassificationData
from fedgram.federation import setup
from fedgram.federation import summary as reporting
from rough_operations import rough_prices


class Reversed(TextClassificationData):
    """The same sentences, whose source lists its classes the other way round."""

    def read(self):
        return {name: replace(raw, label_names=("1", "0")) for name, raw in super().read().items()}


def fit_and_judge(root, material):
    """Fit, test on the data and on that of reversed classes; each process writes what it found."""
    reporting.partition_picture = partition_picture
    setup.find_prices = rough_prices
    trainer, task, data, method = parts_of("FedIT", material, root, rounds=1)
    trainer.fit(task, data, method)
    found = []
    for kind in (TextClassificationData, Reversed):
        trainer, task, own, method = parts_of("FedIT", material, root)
        settings = {"eval_batch_size": 4, "batch_size": 3, "cache_dir": material["cache"]}
        own = kind(material["sentences"], partition=own.partition, **settings)
        found.append(trainer.test(task, own, method, ckpt_path="last"))
    path = Path(root) / f"rank_{os.environ['RANK']}.json"
    path.write_text(json.dumps(found))
