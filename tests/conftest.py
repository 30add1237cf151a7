import os

# before torch is imported; the networks of the tests are small, and threads are shared with other work
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from support.processes import num_threads

torch.set_num_threads(num_threads())
