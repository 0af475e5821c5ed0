"""What the server of `tests.processes` imports once, so that the commands forked from it need not."""

import matplotlib.figure  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
