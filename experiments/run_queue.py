"""Run the queue of experiments/QUEUE.md: see experiments/paper/queue.py."""

import sys

from experiments.paper.queue import main

if __name__ == "__main__":
    sys.exit(main())
