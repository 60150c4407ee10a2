"""Round numbers in the place of counted operations: to count takes as long as to fit a tiny model."""

from fedgram.cost.client_flops import TrainingFlops
from fedgram.cost.compute import Prices

_TRAINING = TrainingFlops(step=10**9, sample=10**6, token=1000, squared_token=1)


def rough_prices(*_: object) -> Prices:
    """Stands for `fedgram.cost.compute.find_prices`."""
    return Prices(_TRAINING, 7)


def rough_flops_by_round(
    _task: object, _config: object, _method: object, _longest: int, _clients: int, rounds: int
) -> list[TrainingFlops]:
    """Stands for `fedgram.cost.client_flops.flops_by_round`."""
    return [_TRAINING] * rounds
