"""What every test process needs, with pytest-xdist's workers and without."""

import os


# Before anything imports torch. One thread is fastest for models 8 to 48 wide, and several workers share the cores.
# Scripts that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
