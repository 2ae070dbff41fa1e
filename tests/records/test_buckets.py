"""A run in a bucket is the run in a folder, resumed as it is; where the bucket refuses, one line says so."""

import json
import random
import time
from pathlib import Path

import pytest

from kit.bucket_server import free_port
from kit.cell_writer import CONFIG, cell_of, records_of
from normscope._errors import StoreError, UsageError
from normscope.records import Store, driven
from normscope.records.addresses import place_of, save, shown

pytestmark = pytest.mark.extras


@pytest.fixture
def address(endpoint: str) -> str:
    return f"s3://runs/{random.randrange(10**12)}"


def written(where: str | Path, seeds: range) -> Store:
    store = Store.create(where, CONFIG)
    for seed in seeds:
        store.write_cell(cell_of(seed), records_of(cell_of(seed)), wall_s=seed)
    return store


def test_a_run_in_a_bucket_is_the_run_in_a_folder(address: str, tmp_path: Path) -> None:
    there, here = written(address, range(3)), written(tmp_path, range(3))
    assert there.frame().equals(here.frame())
    assert there.frame(name="none").height == 0
    assert Store.open(address).wall_times() == here.wall_times()
    assert not list(Path.cwd().glob("s3:*"))


def test_a_path_made_of_the_address_is_the_bucket(address: str) -> None:
    written(Path(address) / "study", range(1))
    assert Store.open(f"{address}/study").completed() == {cell_of(0).id}
    assert [str(place) for place in place_of(Path(address)).places_with("run.json")] == [f"{address}/study"]
    assert shown(Path(address) / "report.html") == f"{address}/report.html"


def test_an_interrupted_run_is_taken_up(address: str, tmp_path: Path) -> None:
    written(address, range(2))
    assert not Store.create(address, CONFIG).write_cell(cell_of(1), [], wall_s=9)  # it is complete
    store = written(address, range(5))
    assert store.frame().equals(written(tmp_path, range(5)).frame())
    with pytest.raises(StoreError, match=f"^{address} holds a run with another configuration"):
        Store.create(address, {"other": 1})


def test_a_damaged_part_is_named(address: str) -> None:
    store = written(address, range(2))
    place, part = place_of(address), f"part-{cell_of(1).id}.parquet"
    content = bytearray(place.read(part))
    content[len(content) // 2] ^= 4
    place.write(part, bytes(content))
    with pytest.raises(StoreError, match=f"{address}/{part} is damaged; delete it and run again"):
        store.frame()
    place.delete(part)
    assert store.completed() == {cell_of(0).id}


def test_of_two_writers_the_first_wins(address: str) -> None:
    place = place_of(address)
    assert place.write("x", b"1", replace=False)
    assert not place.write("x", b"2", replace=False)
    assert place.read("x") == b"1"
    place.delete("x")
    place.delete("x")
    assert not place.holds("x")
    with pytest.raises(FileNotFoundError):
        place.read("x")


def test_a_second_driver_is_refused(address: str) -> None:
    with driven(place_of(address)):
        with pytest.raises(StoreError, match=f"^{address} is being written by process"), driven(place_of(address)):
            raise AssertionError
        assert json.loads(place_of(address).read("driver-whole.json"))["pid"] > 0
    with driven(place_of(address), (1, 2)), driven(place_of(address), (2, 2)):
        pass


def test_pages_are_written_into_the_bucket(address: str) -> None:
    path = save(f"{address}/report.html", "<p>ü</p>")
    assert place_of(address).read("report.html").decode() == "<p>ü</p>"
    assert shown(path) == f"{address}/report.html"


def test_no_such_bucket(endpoint: str) -> None:
    with pytest.raises(StoreError, match=r"^s3://nobody/runs: there is no such bucket; make it first$"):
        Store.create("s3://nobody/runs", CONFIG)


def test_a_server_that_is_not_there_is_given_up_soon(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", gone)
    began = time.monotonic()
    with pytest.raises(StoreError, match=f"^s3://runs/x cannot be reached: no answer from {gone}$"):
        Store.create("s3://runs/x", CONFIG)
    assert time.monotonic() - began < 60


def test_wrong_credentials_and_a_bucket_that_may_not_be_listed(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server checks keys and rights from here on, as a real one does."""
    import boto3
    from moto.core.responses import ActionAuthenticatorMixin

    iam = boto3.client("iam", endpoint_url=endpoint, region_name="us-east-1")
    iam.create_user(UserName="writer")
    keys = iam.create_access_key(UserName="writer")["AccessKey"]
    rights = {"Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"], "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_user_policy(UserName="writer", PolicyName="no-listing", PolicyDocument=document)
    monkeypatch.setattr(ActionAuthenticatorMixin, "INITIAL_NO_AUTH_ACTION_COUNT", 0, raising=False)
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 10)
    refused = r"^s3://runs/x refuses: its credentials must allow to list, read, write and delete: set AWS_ACCESS_KEY_ID"
    with pytest.raises(StoreError, match=refused):
        Store.create("s3://runs/x", CONFIG)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    assert place_of("s3://runs/x").write("may", b"1")
    with pytest.raises(StoreError, match=refused):
        Store.create("s3://runs/x", CONFIG)


def test_a_scope_needs_a_folder(endpoint: str) -> None:
    with pytest.raises(UsageError, match=r"^a scope, which writes every few seconds, needs a folder of this machine"):
        Store.create("s3://runs/x", {"kind": "scope"})
