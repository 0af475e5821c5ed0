"""What the server of `tests.processes` imports once, so that the commands forked from it need not."""

import matplotlib.figure  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import vae_cli.compare
import vae_cli.evaluate
import vae_cli.export
import vae_cli.generate.app
import vae_cli.report.figures
import vae_cli.run
import vae_cli.train  # noqa: F401
