"""The suite of artifact stores: a local folder, obstore on a folder and in memory, and S3, Google Cloud Storage and Azure on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.azure_server import ACCOUNT, KEY, azurite_running, make_container
from tests.conformance.gcs_server import GcsServer, gcs_running
from tests.conftest import missing_service
from ziggurat.artifacts import ArtifactStore
from ziggurat.artifacts.backends.folder import FolderStore
from ziggurat.artifacts.backends.objects import ObjectStore
from ziggurat.artifacts.interface import CHUNK
from ziggurat.errors import ArtifactsUnreachable, ConfigurationError
from ziggurat.testing.artifact_suite import ArtifactStoreSuite

BUCKET = "artifacts"


class TestFolder(ArtifactStoreSuite):
    """A plain folder."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "artifacts"

    def make(self) -> ArtifactStore:
        return FolderStore(self.folder)

    def test_only_this_user_may_read_it(self, store: ArtifactStore) -> None:
        store.put("zga_" + "0" * 32, [b"x"])
        modes = {path.stat().st_mode & 0o077 for path in [self.folder, *self.folder.rglob("*")]}
        assert modes == {0}

    def test_a_folder_that_cannot_be_made_is_said_in_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        store = FolderStore(tmp_path / "file" / "artifacts")
        with pytest.raises(ArtifactsUnreachable, match=r"cannot be written.*Mend the folder"):
            store.put("zga_" + "0" * 32, [b"x"])
        assert list(store.list()) == []


class TestObjectsInAFolder(ArtifactStoreSuite):
    """obstore on the local file system."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "artifacts"

    def make(self) -> ArtifactStore:
        return ObjectStore(self.folder.as_uri())


class TestObjectsInMemory(ArtifactStoreSuite):
    """obstore in memory: one store a test, because it is nowhere else."""

    @pytest.fixture(autouse=True)
    def _place(self) -> None:
        self.only = ObjectStore("memory:///")

    def make(self) -> ArtifactStore:
        return self.only


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """S3 on a free port of the loopback interface."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class TestS3(ArtifactStoreSuite):
    """S3's protocol over a socket."""

    @pytest.fixture(autouse=True)
    def _place(self, s3: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        import boto3

        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": s3,
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        self.url = f"s3://{BUCKET}/{abs(hash(request.node.nodeid))}"

    def make(self) -> ArtifactStore:
        return ObjectStore(self.url)

    def test_a_bucket_that_is_not_there_is_said_without_secrets(self) -> None:
        store = ObjectStore("s3://no-such-bucket/prefix")
        with pytest.raises(ArtifactsUnreachable, match="no-such-bucket") as caught:
            store.put("zga_" + "0" * 32, [b"x"])
        assert "test-secret" not in str(caught.value)


@pytest.fixture(scope="module")
def gcs() -> Iterator[GcsServer]:
    """Google Cloud Storage on a free port of the loopback interface."""
    with gcs_running() as server:
        server.make_bucket(BUCKET)
        yield server


class TestGcs(ArtifactStoreSuite):
    """Google's protocol over a socket, signed with a service account's key."""

    @pytest.fixture(autouse=True)
    def _place(self, gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        self.server = gcs
        self.account = gcs.write_account(tmp_path / "account.json")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(self.account))
        monkeypatch.setenv("GOOGLE_BASE_URL", gcs.url)
        self.prefix = str(abs(hash(request.node.nodeid)))

    def make(self) -> ArtifactStore:
        return ObjectStore(f"gs://{BUCKET}/{self.prefix}")

    def test_a_listing_goes_on_over_pages(self, store: ArtifactStore) -> None:
        keys = {f"zga_{number:032}" for number in range(1_100)}
        self.server.make_bucket(BUCKET, (f"{self.prefix}/00/{key}" for key in keys))
        assert {found.key for found in store.list()} == keys
        assert any("continuation-token" in what for _, what in self.server.asked)

    def test_a_large_object_is_sent_in_parts_and_a_small_one_at_once(self, store: ArtifactStore) -> None:
        del self.server.asked[:]
        store.put("zga_" + "0" * 32, [b"x" * CHUNK] * 9)
        store.put("zga_" + "1" * 32, [b"x"])
        assert [method for method, what in self.server.asked if "?uploads" in what] == ["POST"]
        assert sum("partNumber=" in what for _, what in self.server.asked) == 2

    def test_a_key_that_was_revoked_is_said_without_it(self, gcs: GcsServer) -> None:
        from cryptography.hazmat.primitives.asymmetric import rsa

        gcs.write_account(self.account, key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
        with pytest.raises(ArtifactsUnreachable, match="Check the credentials in the environment") as caught:
            self.make().put("zga_" + "0" * 32, [b"x"])
        assert "PRIVATE KEY" not in str(caught.value)

    def test_a_bucket_that_is_not_there_is_said(self) -> None:
        with pytest.raises(ArtifactsUnreachable, match=r"no-such-bucket.*Make the bucket"):
            list(ObjectStore("gs://no-such-bucket/prefix").get("zga_" + "0" * 32))

    def test_an_account_that_is_no_account_is_a_mistake_of_configuration(self) -> None:
        self.account.write_text("{}")
        with pytest.raises(ConfigurationError, match="gs://bucket/prefix"):
            self.make()


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Azure's blob storage on a free port of the loopback interface."""
    with azurite_running(tmp_path_factory.mktemp("azurite"), missing_service) as url:
        make_container(url, BUCKET)
        yield url


@pytest.mark.slow
class TestAzure(ArtifactStoreSuite):
    """Azure's protocol over a socket, signed with the account's key."""

    @pytest.fixture(autouse=True)
    def _place(self, azurite: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        for name, value in {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{azurite}/{ACCOUNT}",
        }.items():
            monkeypatch.setenv(name, value)
        self.prefix = str(abs(hash(request.node.nodeid)))

    def make(self) -> ArtifactStore:
        return ObjectStore(f"az://{BUCKET}/{self.prefix}")

    def test_a_container_that_is_not_there_is_said_without_secrets(self) -> None:
        store = ObjectStore("az://no-such-container/prefix")
        with pytest.raises(ArtifactsUnreachable, match=r"no-such-container.*Make the bucket") as caught:
            list(store.get("zga_" + "0" * 32))
        assert KEY not in str(caught.value)

    def test_a_wrong_key_is_said_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = "d3JvbmcgYW5kIHNlY3JldA=="
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", wrong)
        with pytest.raises(ArtifactsUnreachable, match="Check the credentials in the environment") as caught:
            self.make().put("zga_" + "0" * 32, [b"x"])
        assert wrong not in str(caught.value)


def test_a_url_that_means_nothing_is_a_mistake_of_configuration() -> None:
    with pytest.raises(ConfigurationError, match="s3://bucket/prefix"):
        ObjectStore("gopher://bucket")


def test_a_store_that_does_not_answer_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.artifacts.backends.objects._RETRIES", 0)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "r", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ArtifactsUnreachable, match="cannot be read now"):
        ObjectStore("s3://bucket/prefix").size("zga_" + "0" * 32)
