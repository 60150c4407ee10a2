"""Round numbers in the place of counted operations: to count takes as long as to fit a tiny model."""

from fedgram.compute import Prices
from fedgram.flops import TrainingFlops


def rough_prices(*_: object) -> Prices:
    """Stands for `fedgram.compute.find_prices`."""
    return Prices(TrainingFlops(step=10**9, sample=10**6, token=1000, squared_token=1), 7)
