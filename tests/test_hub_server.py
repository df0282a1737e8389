"""The loopback Hub refuses what the Hub refuses and returns what was uploaded, as seen by the real client."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http


REPO = "org/model"


@pytest.fixture
def api(hub):
    api = HfApi(token=hub.token)
    api.create_repo(REPO)
    return api


def random_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def upload(api, content: bytes, path: str = "model.safetensors", **kwargs):
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, **kwargs)


class TestRights:
    def test_private_repository_is_hidden_without_a_token(self, hub, api):
        api.create_repo("org/secret", private=True)
        assert api.model_info("org/secret").private
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=False).model_info("org/secret")

    def test_unknown_token_is_401_everywhere(self, hub, api):
        stranger = HfApi(token="hf_" + "x" * 34)
        for call in (lambda: stranger.model_info(REPO), lambda: upload(stranger, b"x")):
            with pytest.raises(HfHubHTTPError) as error:
                call()
            assert error.value.response.status_code == 401

    def test_nobody_may_write_without_a_token(self, hub, api):
        upload(api, b"first", "a.txt")
        reader = HfApi(token=False)
        for call in (lambda: upload(reader, b"second", "a.txt"), lambda: reader.create_repo("org/other")):
            with pytest.raises(HfHubHTTPError, match="401"):
                call()
        assert hub.files(REPO) == {"a.txt": b"first"}

    def test_storage_takes_no_token(self, hub, api):
        content = random_bytes(2000)
        upload(api, content)
        url = f"{hub.storage_url}/lfs-download/{next(iter(hub.objects))}"
        assert _http.get_session().get(url).content == content
        refused = _http.get_session().get(url, headers={"Authorization": f"Bearer {hub.token}"})
        assert refused.status_code == 400


class TestFiles:
    def test_missing_things_raise_the_clients_own_errors(self, hub, api):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/nowhere")
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision="nowhen")
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download(REPO, "nothing.json")

    def test_small_and_large_files_come_back_as_they_went(self, hub, api, tmp_path):
        files = {
            "config.json": b"{}",
            "deep/er/a.txt": b"\x00\xff",
            "empty": b"",
            "w.safetensors": random_bytes(70_000),
        }
        for path, content in files.items():
            (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "up" / path).write_bytes(content)
        commit = api.upload_folder(folder_path=tmp_path / "up", repo_id=REPO)
        folder = Path(api.snapshot_download(REPO))
        assert folder.name == commit.oid
        assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files


class TestCommits:
    def test_same_content_makes_no_commit(self, hub, api):
        first = upload(api, b"one", "a.txt")
        assert upload(api, b"one", "a.txt").oid == first.oid
        assert len(hub.repository(REPO).history("main")) == 2

    def test_delete_and_add_in_one_commit(self, hub, api):
        upload(api, b"1", "old/a.txt")
        operations = [CommitOperationDelete("old/a.txt"), CommitOperationAdd("new.txt", b"3")]
        api.create_commit(REPO, operations, commit_message="move")
        assert hub.files(REPO) == {"new.txt": b"3"}
        with pytest.raises(EntryNotFoundError):
            api.delete_file("nothing.txt", REPO)

    def test_branches_and_old_commits_can_be_read(self, hub, api):
        first = upload(api, b"1", "a.txt")
        api.create_branch(REPO, branch="try/this")
        upload(api, b"2", "a.txt", revision="try/this")
        upload(api, b"3", "a.txt")
        read = {
            revision: Path(api.hf_hub_download(REPO, "a.txt", revision=revision)).read_bytes()
            for revision in ("main", "try/this", first.oid)
        }
        assert read == {"main": b"3", "try/this": b"2", first.oid: b"1"}


def test_fresh_process_reaches_the_server_by_environment_alone(hub, api, tmp_path):
    """What `environment` returns is all that a process needs, and a pull needs no token."""
    upload(api, b"words", "a.txt")
    script = "from huggingface_hub import hf_hub_download; print(open(hf_hub_download('org/model', 'a.txt')).read())"
    environment = {**os.environ, **hub.environment(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "words", done.stderr
