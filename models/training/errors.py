"""What can go wrong between a folder of data and a LoRA that is served.

    TrainingError
    ├── DatasetUnusable       pictures or captions that nothing can be trained on: fix the folder
    ├── ConfigRefused         a configuration with errors: `config check` lists them with lines
    ├── BaseUnusable          the base model is no Flux.1 pipeline, or not fetched
    ├── CheckpointUnusable    the state to go on from is broken, or belongs to another run
    ├── OutOfMemory           the device's memory ran out; the last checkpoint is intact
    ├── OutOfDisk             the disk is full; the last checkpoint is intact
    ├── TrainingDiverged      a loss that is no number; the last checkpoint is intact
    └── PublishRefused        the catalog or the image service did not take the LoRA

Every message is one sentence that names the file or the key, and what to do.
"""

from models.errors import ModelsError


class TrainingError(ModelsError):
    """Base of everything that `models.training` raises on purpose."""


class DatasetUnusable(TrainingError):
    """No picture with a caption, or a folder that is none."""


class ConfigRefused(TrainingError):
    """A configuration that does not say what to train, or says what nothing here can do."""


class BaseUnusable(TrainingError):
    """The model to fine-tune is not here, or has another layout."""


class CheckpointUnusable(TrainingError):
    """What a run would go on from cannot be read, or is another configuration's."""


class OutOfMemory(TrainingError):
    """Smaller batches, a smaller resolution or gradient checkpointing would help."""


class OutOfDisk(TrainingError):
    """Nothing partial was left in a checkpoint's place."""


class TrainingDiverged(TrainingError):
    """The loss became NaN or infinite: a lower learning rate would help."""


class PublishRefused(TrainingError):
    """The LoRA is as it was; nothing was half published."""
