"""Data of the task: reading, tokenising, and dealing to clients."""

from fedgram.data.base import FederatedData
from fedgram.data.glue import GLUE
from fedgram.data.packages import package_path
from fedgram.data.partition import IID, Dirichlet, Partition, Samples, Shards, deal_like
from fedgram.data.partition_picture import counts, draw, write_table
from fedgram.data.quickstart import Quickstart
from fedgram.data.reading import RawSplit
from fedgram.data.squad import Questions, SQuAD
from fedgram.data.text import TextClassificationData
from fedgram.data.tokens import TokenTable, cached, tokenise

__all__ = [
    "GLUE",
    "IID",
    "Dirichlet",
    "FederatedData",
    "Partition",
    "Questions",
    "Quickstart",
    "RawSplit",
    "SQuAD",
    "Samples",
    "Shards",
    "TextClassificationData",
    "TokenTable",
    "cached",
    "counts",
    "deal_like",
    "draw",
    "package_path",
    "tokenise",
    "write_table",
]
