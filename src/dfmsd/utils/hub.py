"""The Hugging Face hub, asked once where its library would ask six times."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def ask_hub(model: str) -> None:
    """Ask the hub for a model that is not in the cache, so that a hub that cannot be reached is noticed at once.

    huggingface_hub tries the download of each missing file again for 23 seconds, with warnings, and has no setting for
    that. Its errors pass through.

    Args:
        model: Id on the hub, with or without ``@revision``.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    name = model.partition("@")[0]
    if Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots").is_dir():
        return
    with suppress(EntryNotFoundError):  # any file would do
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
