import torch

torch.set_num_threads(1)  # the networks of the tests are small, and threads are shared with other work
