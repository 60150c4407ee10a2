"""One model for all samples, as evaluation wants it."""

import numpy as np

from fedgram.federation.clients import ClientStore, Models


def all_by(state, table):
    """One model that answers every sample."""
    return [(state, np.arange(len(table)))]


def models_of(state, data, store=None, clients=3):
    """A server's model, and the clients' where a store says so."""
    return Models(state, store or ClientStore(), data.shards(clients, 0), 0)
