"""A callback for PyTorch Lightning (``pip install 'hoyer-export[lightning]'``): what its Trainer trains becomes sparse.

After ``fit`` go on as in any loop: ``select_channels``, ``zero_``, ``cut``, another ``fit`` of the slim network, and
``ship``.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the same under its older name
    from pytorch_lightning import Callback, LightningModule, Trainer

from hoyer_export.channels.cost import dense_macs
from hoyer_export.sparsify.regulariser import Regulariser
from hoyer_export.sparsify.state import macs_shares


class Sparsify(Callback):
    """Calls a regulariser where a Trainer makes its steps, whatever its precision, accumulation and optimizer are.

    It logs ``effective_macs``, the share of the dense MACs at the effective widths, after each epoch, and stands in the
    Trainer's checkpoints.

    Args:
        regulariser: ``hx.GroupHS`` or ``hx.FunctionHS``, or one of your own, of this very ``network``.
        network: the module that was traced: the LightningModule, or one inside it.
    """

    def __init__(self, regulariser: Regulariser, network: nn.Module) -> None:
        self.regulariser, self.network = regulariser, network
        self._watching = ExitStack()
        self._steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the network from now on, if the regulariser wants to."""
        self._steps = trainer.global_step
        self._watching.enter_context(self.regulariser.observe(self.network))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add to the gradients, which are whole and unscaled."""
        self.regulariser.add_gradient_()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the regulariser change the weights, where the batch ended with a step."""
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self.regulariser.after_step_(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch no longer, and log how far the network is."""
        self._watching.close()
        channels = self.regulariser.channels
        if channels is None:
            return
        shares = macs_shares(channels, self.network, dense_macs(channels), self.regulariser.norms())
        pl_module.log("effective_macs", shares.effective)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook on the network."""
        self._watching.close()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the regulariser keeps."""
        return dict(self.regulariser.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from it."""
        self.regulariser.load_state_dict(state_dict)
