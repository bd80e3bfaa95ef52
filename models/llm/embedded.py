"""The embedded LLM: a GGUF file becomes a folder of bfloat16 safetensors that vLLM serves.

vLLM 0.32 on a CPU reads no GGUF, while transformers does: it dequantises every tensor and rebuilds
the tokenizer from the file's metadata. That takes about 4 bytes of memory a parameter, which
returns to the system because the work happens in a child process.

    python -m models.llm.embedded FILE.gguf FOLDER
"""

import subprocess
import sys
from pathlib import Path

from models.errors import ConversionFailed

CONVERSION_TIMEOUT_S = 1800
_PACKAGE_PARENT = Path(__file__).parents[2]
_KILLED = -9


def convert_in_child(gguf: Path, folder: Path) -> None:
    """Run `convert` in a Python of its own; raises ConversionFailed with the child's last line."""
    command = [sys.executable, "-m", "models.llm.embedded", str(gguf), str(folder)]
    try:
        child = subprocess.run(  # noqa: S603  (this Python, this module, two paths)
            command,
            cwd=_PACKAGE_PARENT,
            capture_output=True,
            text=True,
            timeout=CONVERSION_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as slow:
        raise ConversionFailed(f"{gguf.name}: not converted in {CONVERSION_TIMEOUT_S} s") from slow
    if child.returncode == _KILLED:
        raise ConversionFailed(f"{gguf.name}: the conversion was killed; give it more memory")
    if child.returncode != 0:
        last = (child.stderr.strip() or f"exit code {child.returncode}").splitlines()[-1]
        raise ConversionFailed(f"{gguf.name} could not be converted: {last}")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and its tokenizer into `folder`, which is made; existing files are replaced.

    Takes about 4 bytes of memory a parameter, on the CPU.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
