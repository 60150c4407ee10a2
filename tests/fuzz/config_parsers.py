"""Makes the parsers of the command line when it is imported, so that no case has to: a warm parent imports it."""

import contextlib

from fedgram.cli.lightning import build
from fedgram.errors import FedgramError

with contextlib.suppress(FedgramError):  # there is nothing to build
    build([])
