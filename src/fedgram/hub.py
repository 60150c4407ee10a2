"""The Hugging Face hub: whether it is asked, and what to do about what is not there without it.

Where it can't be reached, its libraries retry for half a minute for every file, even for files that they have in their
cache. So it is tried once, and otherwise switched off as ``HF_HUB_OFFLINE=1`` does it.
"""

import functools
import logging
import os
import re
import sys
from pathlib import Path

__all__ = ["is_hub_name", "remedy", "why_offline"]

log = logging.getLogger(__name__)


def is_hub_name(place: str) -> bool:
    """Say whether a place is the name of something on the hub, as far as one can tell, and no file or folder.

    >>> is_hub_name("owner/model"), is_hub_name("./model"), is_hub_name("a/b/c")
    (True, False, False)
    """
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", place) is not None and not Path(place).exists()


@functools.cache
def why_offline() -> str | None:
    """Return why this process does not ask the hub; None if it does."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    problem = _problem_of_reaching(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)
    if problem is None:
        return None
    _switch_off()
    reason = f"the hub can't be reached at {constants.ENDPOINT} ({problem})"
    log.warning("%s: only what is in its cache is used", reason)
    return reason


def _problem_of_reaching(endpoint: str, seconds: float) -> str | None:
    """Return why there is no answer from an address, whatever the answer says; None if there is one."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=seconds)  # the libraries' own, with the proxies that they go through
    except Exception as error:  # noqa: BLE001 (whose errors these are depends on the version)
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _switch_off() -> None:
    """Switch the hub off, for libraries that are imported and that will be, and for processes started from here."""
    import huggingface_hub

    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    # Before its version 1.0, a session that was made online stays so.
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def remedy(cache: object) -> str | None:
    """Return what to do about what is not in a cache of the hub; None where the hub is asked.

    Args:
        cache: the folder in which it is expected.
    """
    why = why_offline()
    return why and (
        f"{why}, so that it has to be in the cache {cache}: run fedgram prepare with the same options where there is a "
        "network"
    )
