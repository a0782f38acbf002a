"""The Hub's side of publishing: the token, the repository, and what its errors mean."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evomerge.checkpoint import belongs_to_model
from evomerge.errors import PublishError
from evomerge.publish.card import is_sealed
from evomerge.publish.checks import CARD


def token_for_hub() -> str:
    """Returns the token for the Hub.

    Raises:
        PublishError: there is none, or it cannot be one.
    """
    from huggingface_hub import get_token

    try:
        token = get_token()
    # A token file that cannot be read, or a service that gives none.
    except Exception as fault:
        raise PublishError(f"no token for the Hub: {type(fault).__name__}; log in again with `hf auth login`") from None
    if not token:
        raise PublishError(
            "no token for the Hub: log in with `hf auth login`, or set HF_TOKEN to a token with write access"
            " (https://huggingface.co/settings/tokens); nothing was sent"
        )
    # The client's error for such a header would show it.
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise PublishError(
            "the token for the Hub has a space, a control character or a letter that no token has; nothing was sent."
            " Set HF_TOKEN again, or log in again with `hf auth login`"
        )
    return token


class Repository:
    """A branch of a repository on the Hub.

    Args:
        repo_id: ``OWNER/NAME``.
        revision: the branch; None for ``main``.
        token: the token to use.
    """

    def __init__(self, repo_id: str, revision: str | None, token: str) -> None:
        from huggingface_hub import HfApi

        self._id, self._revision = repo_id, revision
        self._api = HfApi(library_name="evomerge", token=token)

    def make(self, private: bool) -> list[str]:
        """Makes the repository and the branch where there are none, and returns the names of the files there."""
        pull_request = self._revision is not None and self._revision.startswith("refs/")  # of a repository that exists
        if not pull_request:
            self._api.create_repo(self._id, private=private or None, exist_ok=True)
        if private and not self._api.repo_info(self._id).private:
            raise PublishError(
                f"{self._id}: is public, and --private does not change that; make it private in its settings, name"
                " another repository, or leave out --private; nothing was sent"
            )
        if self._revision not in (None, "main") and not pull_request:
            self._api.create_branch(self._id, branch=self._revision, exist_ok=True)
        return self._api.list_repo_files(self._id, revision=self._revision)

    def card_is_edited(self) -> bool:
        """Returns whether somebody wrote or edited the card there."""
        with TemporaryDirectory(prefix="evomerge-") as folder:
            path = self._api.hf_hub_download(self._id, CARD, revision=self._revision, local_dir=folder)
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        # The Hub's website writes a card of metadata alone.
        return not is_sealed(text) and bool(re.sub(r"\A---\n.*?\n---(\n|\Z)", "", text, flags=re.DOTALL).strip())

    def send(self, folder: Path, names: list[str], stale: list[str]) -> str:
        """Sends files of a folder, removes stale ones, and returns the commit's address."""
        commit = self._api.upload_folder(
            repo_id=self._id,
            folder_path=folder,
            revision=self._revision,
            allow_patterns=[glob.escape(name) for name in names],
            delete_patterns=[glob.escape(name) for name in stale] or None,
            commit_message="Upload a merge made with evomerge",
        )
        return str(commit.commit_url)


def stale_files(there: Iterable[str], sent: Iterable[str]) -> list[str]:
    """Returns which files of a repository are parts of another model: runtimes would load them with what is sent."""
    keep = {CARD, ".gitattributes", *sent}
    return sorted(name for name in there if belongs_to_model(name) and name not in keep and "LICENSE" not in name)


@contextmanager
def hub_errors(repo_id: str, token: str) -> Iterator[None]:
    """Raises a PublishError in place of the Hub client's errors; the token is in none of its words."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except PublishError:
        raise
    # The Hub's client, the HTTP client under it and the disk raise errors of many kinds.
    except Exception as fault:
        root: BaseException = fault
        while root.__cause__ is not None and not isinstance(root, HfHubHTTPError):
            root = root.__cause__
        text = _refused(root, repo_id) if isinstance(root, HfHubHTTPError) else _broken_off(root, repo_id)
        raise PublishError(text.replace(token, "(token)")) from None


def _refused(fault: Any, repo_id: str) -> str:
    """Returns what an answer of the Hub that is an error means, and what to do."""
    status = fault.response.status_code
    said = f" ({status}: {fault.server_message or 'no reason given'})".replace("\n", " ")
    owner = repo_id.partition("/")[0]
    if status == 401:
        return (
            f"{repo_id}: the Hub does not accept the token{said}; log in again with `hf auth login`, or set HF_TOKEN to"
            " a valid one"
        )
    if status == 403:
        return (
            f"{repo_id}: the token may not write there{said}; it needs write access to {owner}: make one in"
            " https://huggingface.co/settings/tokens, or name a repository of your own"
        )
    if status == 404:
        return f"{repo_id}: the Hub finds no such repository or branch{said}; check the name and --revision"
    again = "run the same command again: it completes the upload"
    if status == 409:
        return f"{repo_id}: somebody else changed the repository at the same time{said}; {again}"
    if status == 429:
        wait = fault.response.headers.get("Retry-After")
        return f"{repo_id}: too many requests to the Hub{said}; wait {f'{wait} s' if wait else 'a while'}, and {again}"
    if status >= 500:
        return f"{repo_id}: the Hub fails{said}; {again}"
    return f"{repo_id}: the Hub refuses it{said}"


def _broken_off(fault: BaseException, repo_id: str) -> str:
    reason = (str(fault).strip().splitlines() or ["no reason given"])[0]
    if isinstance(fault, ValueError) and not isinstance(fault, json.JSONDecodeError):
        return f"{repo_id}: the Hub refuses it: {' '.join(str(fault).split())}"  # The card's metadata, for instance.
    return (
        f"{repo_id}: the upload broke off ({type(fault).__name__}: {reason}); check the connection, unset"
        " HF_HUB_OFFLINE, and run the same command again: it completes the upload"
    )
