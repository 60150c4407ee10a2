"""One configuration as ``fedgram fit`` runs it, in a folder of its own."""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any


def fit(config: str, folder: str) -> dict[str, Any]:
    """Run ``fedgram fit`` on a config, and return what it left: exit code, output, errors and files."""
    import fedgram.cost.estimation
    import fedgram.federation.setup
    import fedgram.federation.summary
    from blank_pictures import partition_picture
    from fedgram.cli import main
    from rough_operations import rough_flops_by_round, rough_prices

    fedgram.federation.summary.partition_picture = partition_picture
    fedgram.federation.setup.find_prices = rough_prices
    fedgram.cost.estimation.flops_by_round = rough_flops_by_round
    Path(folder).mkdir()
    os.chdir(folder)
    sys.argv = ["fedgram", "fit", "--config", config]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    files = [str(path) for path in Path(folder).rglob("*") if path.is_file() and "cache" not in path.parts]
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "files": files}
