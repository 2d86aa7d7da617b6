"""Where a run stands: the stage, and the epoch, that it goes on with."""

from hoyer_export.run.reporting import STAGES
from hoyer_export.recipe import load_recipe
from hoyer_export.run_folder import RunFolder, read_stages
from hoyer_export.sparsify.checkpoint import epochs_done


def standing(folder: RunFolder) -> str:
    """Return what the run in ``folder`` goes on with, e.g. ``sparse, epoch 13 of 30``.

    Raises:
        FileError: a file of the run is damaged.
    """
    done = read_stages(folder)
    # The cut is made again whenever its network has yet to be fine-tuned.
    order = [stage for stage in (*STAGES, "report") if stage not in ("inputs", "cut")]
    stage = next((stage for stage in order if stage not in done), "report")
    phase = getattr(load_recipe(folder.recipe), stage, None)
    epochs = getattr(phase, "epochs", 0)
    if not epochs:
        return stage
    whole = epochs_done(folder.checkpoint / f"{stage}.safetensors")
    return f"{stage}, epoch {whole + 1} of {epochs}" if whole < epochs else f"{stage}, after its {epochs} epochs"
