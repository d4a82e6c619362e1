"""torchrun with the exit code of the job: python -m asr_fine_tuner.torchrun OPTIONS -m jobs.train PARAMETERS.

torchrun itself ends with 1 whatever its processes end with, which a scheduler would take for a bug.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args, run

from asr_fine_tuner.errors import ExitCode

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Start the processes of this node and wait for them; returns the exit code of the first that failed.

    All ranks of a job end with the same one, but for those that were killed (128 + the signal's number). It is 143
    after SIGTERM, which every process has had then, and 75 where the nodes did not find one another.
    """
    try:
        run(parse_args(list(argv)))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code = int(failure.exitcode)
        return code if code > 0 else 128 - code
    except SignalException:
        return ExitCode.INTERRUPTED
    except (RendezvousError, DistError) as error:
        logger.error("the nodes of the job did not find one another: %s", error)
        return ExitCode.TRANSIENT
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
