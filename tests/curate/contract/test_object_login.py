"""Addresses, and credentials from the environment and the shared files alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from curate.contract import object_login


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def files(home: Path, config: str, credentials: str = "") -> None:
    (home / ".aws").mkdir()
    (home / ".aws" / "config").write_text(config)
    (home / ".aws" / "credentials").write_text(credentials)


def test_an_address_is_split() -> None:
    assert object_login.split("s3://bucket/a/b/") == ("s3", "bucket", "a/b")
    assert object_login.split("gs://bucket") == ("gs", "bucket", "")
    with pytest.raises(ValueError, match=r"names no bucket.*hint: s3://BUCKET"):
        object_login.store("s3:///a")


def test_a_client_is_made_once_for_each_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    first = object_login.store("s3://bucket/x")
    assert object_login.store("s3://bucket/y") is first
    assert object_login.store("s3://other/y") is not first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert object_login.store("s3://bucket/x") is not first


def test_half_a_login_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(ValueError, match=r"Missing AccessKeyId.*hint: set AWS_ACCESS_KEY_ID"):
        object_login.store("s3://bucket/half")
    with pytest.raises(ValueError, match="hint: set AZURE_STORAGE_ACCOUNT_NAME"):
        object_login.store("az://container/x")


def test_a_profile_of_the_shared_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert object_login.shared_login() == {}
    files(
        tmp_path,
        "[profile team]\nregion = eu-north-1\n[profile role]\nrole_arn = arn:aws:iam::1:role/x\n",
        "[default]\naws_access_key_id = d\naws_secret_access_key = e\n"
        "[team]\naws_access_key_id = k\naws_secret_access_key = s\naws_session_token = t\n",
    )
    keys = {"access_key_id": "d", "secret_access_key": "e"}
    assert object_login.shared_login() == keys
    monkeypatch.setenv("AWS_PROFILE", "team")
    team = {"access_key_id": "k", "secret_access_key": "s", "session_token": "t"}
    assert object_login.shared_login() == {**team, "region": "eu-north-1"}
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert object_login.shared_login() == team
    monkeypatch.setenv("AWS_PROFILE", "tema")
    with pytest.raises(ValueError, match="AWS_PROFILE=tema: no such profile"):
        object_login.shared_login()
    monkeypatch.setenv("AWS_PROFILE", "role")
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
    with pytest.raises(ValueError, match=r"takes boto3\. hint: pip install boto3"):
        object_login.shared_login()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")  # the environment says it all
    assert object_login.shared_login() == {}
