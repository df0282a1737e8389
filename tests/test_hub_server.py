"""The loopback Hub of the tests, driven by the real `huggingface_hub` client."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Fault, HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http, close_session


REPO = "org/model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running server; this process may talk to it although the tests are offline, and never waits to retry."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # The client keeps what it got of a cut download by whole chunks, of 10 MB otherwise.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        yield server
    close_session()


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(REPO)
    return api


def random_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def upload(api, content: bytes, path: str = "model.safetensors", **kwargs):
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, **kwargs)


class TestRepositories:
    def test_whoami_says_who_and_what_the_token_may_do(self, hub, api):
        assert api.whoami()["name"] == "tester"
        reading = HfApi(endpoint=hub.url, token=hub.read_token)
        assert reading.whoami()["auth"]["accessToken"]["role"] == "read"

    def test_create_is_refused_twice_and_allowed_with_exist_ok(self, hub, api):
        assert api.create_repo(REPO, exist_ok=True) == f"{hub.url}/{REPO}"
        with pytest.raises(HfHubHTTPError, match="409"):
            api.create_repo(REPO)

    def test_model_and_data_set_of_one_name_are_two(self, hub, api):
        api.create_repo(REPO, repo_type="dataset")
        api.upload_file(path_or_fileobj=b"a", path_in_repo="a.csv", repo_id=REPO, repo_type="dataset")
        assert api.list_repo_files(REPO, repo_type="dataset") == ["a.csv"]
        assert api.list_repo_files(REPO) == []
        api.delete_repo(REPO, repo_type="dataset")
        assert not api.repo_exists(REPO, repo_type="dataset")
        assert api.repo_exists(REPO)

    def test_private_repository_is_hidden_without_a_token(self, hub, api):
        api.create_repo("org/secret", private=True)
        assert api.model_info("org/secret").private
        assert HfApi(endpoint=hub.url, token=hub.read_token).model_info("org/secret").id == "org/secret"
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.url, token=False).model_info("org/secret")

    def test_missing_things_raise_the_clients_own_errors(self, hub, api, tmp_path):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/nowhere")
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision="nowhen")
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download(REPO, "nothing.json", cache_dir=tmp_path)


class TestTokens:
    def test_unknown_token_is_401_everywhere(self, hub, api):
        stranger = HfApi(endpoint=hub.url, token="hf_" + "x" * 34)
        for call in (lambda: stranger.model_info(REPO), lambda: upload(stranger, b"x"), stranger.whoami):
            with pytest.raises(HfHubHTTPError) as error:
                call()
            assert error.value.response.status_code == 401

    def test_read_token_may_not_write(self, hub, api):
        upload(api, b"first", "a.txt")
        reader = HfApi(endpoint=hub.url, token=hub.read_token)
        for call in (
            lambda: upload(reader, b"second", "a.txt"),
            lambda: reader.create_repo("org/other"),
            lambda: reader.create_branch(REPO, branch="mine"),
        ):
            with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
                call()
        assert hub.files(REPO) == {"a.txt": b"first"}

    def test_storage_takes_no_token(self, hub, api):
        content = random_bytes(2000)
        upload(api, content)
        url = f"{hub.storage_url}/lfs-download/{next(iter(hub.objects))}"
        assert _http.get_session().get(url).content == content
        refused = _http.get_session().get(url, headers={"Authorization": f"Bearer {hub.token}"})
        assert refused.status_code == 400


class TestCommits:
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
        folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path / "cache"))
        assert folder.name == commit.oid
        assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files

    def test_large_files_go_through_lfs_and_only_once(self, hub, api):
        content = random_bytes(2_000_000)
        upload(api, content, "notes.txt")
        upload(api, content, "copy.txt")
        assert [entry[1] for entry in hub.requests].count("/lfs-verify") == 1
        info = api.get_paths_info(REPO, ["notes.txt", "copy.txt"])
        assert {entry.path: (entry.lfs.size, entry.lfs.sha256) for entry in info} == {
            path: (2_000_000, next(iter(hub.objects))) for path in ("notes.txt", "copy.txt")
        }

    def test_same_content_makes_no_commit(self, hub, api):
        first = upload(api, b"one", "a.txt")
        assert upload(api, b"one", "a.txt").oid == first.oid
        assert len(api.list_repo_commits(REPO)) == 2

    def test_delete_and_add_in_one_commit(self, hub, api):
        upload(api, b"1", "old/a.txt")
        upload(api, b"2", "old/b.txt")
        operations = [CommitOperationDelete("old/"), CommitOperationAdd("new.txt", b"3")]
        api.create_commit(REPO, operations, commit_message="move")
        assert hub.files(REPO) == {"new.txt": b"3"}
        with pytest.raises(EntryNotFoundError):
            api.delete_file("nothing.txt", REPO)

    def test_commit_upon_a_commit_that_is_not_the_last_is_refused(self, hub, api):
        first = upload(api, b"1", "a.txt")
        second = upload(api, b"2", "a.txt")
        with pytest.raises(HfHubHTTPError, match="412"):
            upload(api, b"3", "a.txt", parent_commit=first.oid)
        upload(api, b"3", "a.txt", parent_commit=second.oid)
        assert hub.files(REPO)["a.txt"] == b"3"

    def test_branches_tags_and_old_commits_can_be_read(self, hub, api, tmp_path):
        first = upload(api, b"1", "a.txt")
        api.create_tag(REPO, tag="v1")
        api.create_branch(REPO, branch="try/this")
        upload(api, b"2", "a.txt", revision="try/this")
        upload(api, b"3", "a.txt")
        read = {
            revision: Path(api.hf_hub_download(REPO, "a.txt", revision=revision, cache_dir=tmp_path)).read_bytes()
            for revision in ("main", "v1", "try/this", first.oid)
        }
        assert read == {"main": b"3", "v1": b"1", "try/this": b"2", first.oid: b"1"}
        refs = api.list_repo_refs(REPO)
        assert [branch.name for branch in refs.branches] == ["main", "try/this"]
        assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first.oid)]

    def test_tree_lists_folders_and_files(self, hub, api):
        for path in ("a.txt", "data/b.txt", "data/train/c.txt", "database.txt"):
            upload(api, path.encode(), path)
        assert {entry.path for entry in api.list_repo_tree(REPO)} == {"a.txt", "data", "database.txt"}
        assert {entry.path for entry in api.list_repo_tree(REPO, "data")} == {"data/b.txt", "data/train"}
        below = {entry.path for entry in api.list_repo_tree(REPO, "data", recursive=True, expand=True)}
        assert below == {"data/b.txt", "data/train", "data/train/c.txt"}

    def test_commit_of_an_object_that_was_never_uploaded_is_refused(self, hub, api):
        line = '{"key": "header", "value": {"summary": "x"}}\n{"key": "lfsFile", "value": {"path": "a", "oid": "0", "size": 1}}'
        answer = _http.get_session().post(
            f"{hub.url}/api/models/{REPO}/commit/main", content=line, headers={"Authorization": f"Bearer {hub.token}"}
        )
        assert answer.status_code == 400
        assert hub.files(REPO) == {}


class TestCutUploads:
    def test_one_cut_is_repaired_by_the_client(self, hub, api):
        content = random_bytes(600_000)
        hub.faults.append(Fault("cut_upload", after=200_000))
        upload(api, content)
        assert hub.files(REPO) == {"model.safetensors": content}
        puts = [status for _, path, status in hub.requests if path.startswith("/lfs-upload/")]
        assert puts == [0, 200]

    def test_lasting_cut_leaves_the_last_good_commit(self, hub, api, tmp_path):
        good = {"model.safetensors": random_bytes(50_000, seed=1), "config.json": b'{"version": 1}'}
        for path, content in good.items():
            upload(api, content, path)
        head = api.model_info(REPO).sha
        hub.faults.append(Fault("cut_upload", after=20_000, times=100))
        operations = [
            CommitOperationAdd("model.safetensors", random_bytes(50_000, seed=2)),
            CommitOperationAdd("config.json", b'{"version": 2}'),
        ]
        with pytest.raises(RuntimeError, match="Error while uploading 'model.safetensors'"):
            api.create_commit(REPO, operations, commit_message="broken")
        assert api.model_info(REPO).sha == head
        assert hub.files(REPO) == good
        folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path))
        assert (folder / "model.safetensors").read_bytes() == good["model.safetensors"]

    def test_cut_in_the_commit_itself_changes_nothing(self, hub, api):
        upload(api, b"good", "a.txt")
        head = api.model_info(REPO).sha
        hub.faults.append(Fault("cut_commit", after=40, times=100))
        with pytest.raises(_http.httpx2.TransportError):
            upload(api, b"bad", "a.txt")
        assert api.model_info(REPO).sha == head
        assert hub.files(REPO) == {"a.txt": b"good"}

    def test_content_that_is_not_what_was_announced_is_refused(self, hub, api):
        hub.upload_slots["slot"] = ("0" * 64, 4)
        assert _http.get_session().put(f"{hub.url}/lfs-upload/slot", content=b"data").status_code == 400
        assert hub.objects == {}


class TestCutDownloads:
    @pytest.mark.parametrize("path", ["model.safetensors", "vocab.txt"])
    def test_download_resumes_where_it_was_cut(self, hub, api, tmp_path, path):
        content = random_bytes(300_000)
        upload(api, content, path)
        hub.faults.append(Fault("cut_download", after=100_000, times=2, match=path))
        local = api.hf_hub_download(REPO, path, cache_dir=tmp_path)
        assert Path(local).read_bytes() == content
        assert [entry for entry in hub.requests if entry[2] == 206], "no range was asked for"

    def test_resumed_download_starts_afresh_when_ranges_are_not_served(self, hub, api, tmp_path):
        content = random_bytes(300_000)
        upload(api, content)
        hub.faults += [Fault("cut_download", after=100_000), Fault("ignore_range")]
        assert Path(api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)).read_bytes() == content

    @pytest.mark.parametrize(("kind", "after"), [("cut_download", 0), ("short_download", 1000)])
    def test_lasting_cut_fails_and_leaves_no_file(self, hub, api, tmp_path, kind, after):
        upload(api, random_bytes(30_000))
        fault = Fault(kind, after, times=100)
        hub.faults.append(fault)
        with pytest.raises((OSError, _http.httpx2.RemoteProtocolError)):
            api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
        assert not list(tmp_path.rglob("model.safetensors"))
        fault.times = 0
        local = api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
        assert Path(local).read_bytes() == hub.files(REPO)["model.safetensors"]

    def test_range_beyond_the_end_is_416(self, hub, api):
        upload(api, b"0123456789", "a.txt")
        url = f"{hub.url}/{REPO}/resolve/main/a.txt"
        assert _http.get_session().get(url, headers={"Range": "bytes=2-4"}).content == b"234"
        assert _http.get_session().get(url, headers={"Range": "bytes=10-"}).status_code == 416


def test_fresh_process_reaches_the_server_by_environment_alone(hub, api, tmp_path):
    """What `environment` returns is all that a process needs, and a pull needs no token."""
    upload(api, b"words", "a.txt")
    script = "from huggingface_hub import hf_hub_download; print(open(hf_hub_download('org/model', 'a.txt')).read())"
    environment = {**os.environ, **hub.environment(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "words", done.stderr
