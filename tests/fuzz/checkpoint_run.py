"""A run that goes on from, or is tested with, whatever checkpoints its folder has."""

from typing import Any

from warm_parent import Outcome, outcome_of


def go_on(name: str, root: str, material: dict[str, str], command: str, rounds: int = 3) -> Any:
    """Fit a case of `distributed.fits`, go on with it, or test it.

    Args:
        name: of the case.
        root: the folder of its runs.
        material: the folders that it needs.
        command: "fit" for a new run, "resume" or "test".
        rounds: how many it has.

    Returns:
        The hash of its state at the end; of a test the metrics.
    """
    from blank_pictures import partition_picture
    from distributed.fits import CASES, parts_of
    from fedgram.federation import setup
    from fedgram.federation import summary as reporting
    from rough_operations import rough_prices

    reporting.partition_picture = partition_picture  # type: ignore[assignment]
    setup.find_prices = rough_prices  # type: ignore[assignment]
    trainer, task, data, method = parts_of(
        name, material, root, rounds=rounds, evaluate_every=1, packing=False, local_steps=1
    )
    if command == "test":
        return trainer.test(task, data, method, "last")
    return trainer.fit(task, data, method, CASES[name].optimizer(), "last" if command == "resume" else None)[
        "state_hash"
    ]


def go_on_with_each(cases: list[tuple[str, str, dict[str, str], str]]) -> list[Outcome]:
    """Do the same for several runs, one after the other: only the first takes what a new process takes."""
    return [outcome_of(go_on, *case) for case in cases]
