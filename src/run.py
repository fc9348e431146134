"""Train one configuration, or a sweep of them.

    python -m src.run backbone=resnet32 budget.flops=0.5G
    python -m src.run experiment=demo
    python -m src.run -m backbone=vgg16 budget.flops=20M,42M,80M seed=0,1,2

The same command continues a run that was interrupted, and prints the table of one that is done. Installed, it is
`budgetnet`, from any directory.
"""

import sys

from budgetnet.command.main import main

if __name__ == "__main__":
    sys.exit(main())
