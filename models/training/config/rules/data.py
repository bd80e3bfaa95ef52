"""Rules about data sets: folders, captions, sizes, caches.

Whether single pictures and captions are sound is for `dataset check`; here counts and sizes are
compared with what the configuration asks of them.
"""

from collections.abc import Iterator

from models.training.config.documents import KeyPath
from models.training.config.findings import Hit, rule
from models.training.config.schema import Dataset
from models.training.config.view import PROCESS, View

DATASETS: KeyPath = (*PROCESS, "datasets")

_FEW_PASSES, _MANY_PASSES = 15, 400
_FILLED = 0.9  # a picture a tenth smaller than asked is as good


@rule("no-folder", "error")
def no_folder(view: View) -> Iterator[Hit]:
    for index, dataset in enumerate(view.process.datasets):
        if dataset.folder is None:
            yield Hit((*DATASETS, index))


@rule("folder-missing", "warning")
def folder_missing(view: View) -> Iterator[Hit]:
    for index, dataset in enumerate(view.process.datasets):
        is_json = (dataset.folder or "").endswith((".json", ".jsonl"))
        if dataset.folder and not is_json and view.survey(index) is None:
            yield Hit(_folder_path(index, dataset))


@rule("folder-without-pictures", "error")
def folder_without_pictures(view: View) -> Iterator[Hit]:
    for index, dataset, survey in view.surveys:
        if survey.pictures == 0:
            yield Hit(_folder_path(index, dataset))


@rule("captions-missing", "warning")
def captions_missing(view: View) -> Iterator[Hit]:
    for index, dataset, survey in view.surveys:
        if survey.pictures and not survey.captions:
            says = {"count": survey.pictures, "suffix": dataset.caption_suffix}
            yield Hit(_folder_path(index, dataset), says)


@rule("resolution-unfilled", "warning")
def resolution_unfilled(view: View) -> Iterator[Hit]:
    for index, dataset, survey in view.surveys:
        for resolution in dataset.resolutions:
            wanted = resolution * resolution * _FILLED
            small = [size for size in survey.sizes if size[0] * size[1] < wanted]
            if small:
                smallest = min(small, key=lambda size: size[0] * size[1])
                says = {
                    "resolution": resolution,
                    "small": len(small),
                    "count": len(survey.sizes),
                    "smallest": f"{smallest[0]}x{smallest[1]}",
                }
                yield Hit((*DATASETS, index, "resolution"), says)


@rule("resolution-twice", "warning")
def resolution_twice(view: View) -> Iterator[Hit]:
    for index, dataset in enumerate(view.process.datasets):
        if len(set(dataset.resolutions)) < len(dataset.resolutions):
            yield Hit((*DATASETS, index, "resolution"))


@rule("steps-against-pictures", "warning")
def steps_against_pictures(view: View) -> Iterator[Hit]:
    pictures = sum(
        survey.pictures * dataset.num_repeats * (1 + dataset.flip_x) * (1 + dataset.flip_y)
        for _, dataset, survey in view.surveys
        if not dataset.is_reg
    )
    if not pictures or len(view.surveys) < len(view.process.datasets):
        return
    train = view.process.train
    passes = train.steps * train.batch_size * train.gradient_accumulation / pictures
    if not _FEW_PASSES <= passes <= _MANY_PASSES:
        says = {
            "steps": train.steps,
            "pictures": pictures,
            "passes": f"{passes:.3g}",
            "few": _FEW_PASSES,
            "many": _MANY_PASSES,
        }
        yield Hit((*PROCESS, "train", "steps"), says)


@rule("only-regularisation", "error")
def only_regularisation(view: View) -> Iterator[Hit]:
    if all(dataset.is_reg for dataset in view.process.datasets):
        yield Hit((*DATASETS, 0, "is_reg"))


@rule("buckets-mixed", "error")
def buckets_mixed(view: View) -> Iterator[Hit]:
    datasets = view.process.datasets
    if len({dataset.buckets for dataset in datasets}) > 1:
        index = next(index for index, dataset in enumerate(datasets) if not dataset.buckets)
        yield Hit((*DATASETS, index, "buckets"))


@rule("cached-latents-do-not-change", "warning")
def cached_latents_do_not_change(view: View) -> Iterator[Hit]:
    for index, dataset in enumerate(view.process.datasets):
        if not (dataset.cache_latents or dataset.cache_latents_to_disk):
            continue
        for name in ("random_crop", "random_scale", "augments", "augmentations"):
            if getattr(dataset, name):
                yield Hit((*DATASETS, index, name))


@rule("cached-captions-do-not-change", "warning")
def cached_captions_do_not_change(view: View) -> Iterator[Hit]:
    for index, dataset in enumerate(view.process.datasets):
        if not _caches_text(view, dataset):
            continue
        for name in ("caption_dropout_rate", "shuffle_tokens", "token_dropout_rate"):
            if getattr(dataset, name):
                yield Hit((*DATASETS, index, name))


@rule("text-cached-in-part", "error")
def text_cached_in_part(view: View) -> Iterator[Hit]:
    datasets = view.process.datasets
    if len({_caches_text(view, dataset) for dataset in datasets}) > 1:
        index = next(i for i, dataset in enumerate(datasets) if not _caches_text(view, dataset))
        yield Hit((*DATASETS, index, "cache_text_embeddings"))


@rule("text-cached-with-trigger", "warning")
def text_cached_with_trigger(view: View) -> Iterator[Hit]:
    is_cached = any(_caches_text(view, dataset) for dataset in view.process.datasets)
    if is_cached and view.process.trigger_word is not None:
        yield Hit((*PROCESS, "trigger_word"))


@rule("text-cached-with-preservation", "error")
def text_cached_with_preservation(view: View) -> Iterator[Hit]:
    is_cached = any(_caches_text(view, dataset) for dataset in view.process.datasets)
    if is_cached and view.process.train.diff_output_preservation:
        yield Hit((*PROCESS, "train", "diff_output_preservation"))


@rule("keep-without-shuffle", "warning")
def keep_without_shuffle(view: View) -> Iterator[Hit]:
    for index, dataset in enumerate(view.process.datasets):
        if dataset.keep_tokens and not (dataset.shuffle_tokens or dataset.token_dropout_rate):
            yield Hit((*DATASETS, index, "keep_tokens"))


def _folder_path(index: int, dataset: Dataset) -> KeyPath:
    return (*DATASETS, index, "dataset_path" if dataset.dataset_path else "folder_path")


def _caches_text(view: View, dataset: Dataset) -> bool:
    return dataset.cache_text_embeddings or view.process.train.cache_text_embeddings
