"""Makes the parsers of the command line when it is imported, so that no case has to: a warm parent imports it."""

import contextlib

from fedgram.errors import FedgramError
from fedgram.lightning_cli import build

with contextlib.suppress(FedgramError):  # there is nothing to build
    build([])
