"""Rules about the LoRA's shape."""

from collections.abc import Iterator

from models.training.config.documents import KeyPath
from models.training.config.findings import Hit, rule
from models.training.config.view import PROCESS, View

NETWORK: KeyPath = (*PROCESS, "network")


@rule("network-type", "error")
def network_type(view: View) -> Iterator[Hit]:
    if view.process.network.type != "lora":
        yield Hit((*NETWORK, "type"))


@rule("rank-twice", "warning")
def rank_twice(view: View) -> Iterator[Hit]:
    network = view.process.network
    if view.is_written("network", "linear") and network.rank not in (None, network.linear):
        yield Hit((*NETWORK, "rank"), {"linear": network.linear})


@rule("alpha-not-honoured", "warning")
def alpha_not_honoured(view: View) -> Iterator[Hit]:
    network = view.process.network
    if network.type != "lora":
        return
    for name in ("alpha", "linear_alpha"):
        alpha = getattr(network, name)
        if view.is_written("network", name) and alpha not in (None, network.lora_rank):
            yield Hit((*NETWORK, name), {"rank": network.lora_rank})


@rule("conv-on-flux", "warning")
def conv_on_flux(view: View) -> Iterator[Hit]:
    for name in ("conv", "conv_alpha"):
        if getattr(view.process.network, name) is not None:
            yield Hit((*NETWORK, name))
