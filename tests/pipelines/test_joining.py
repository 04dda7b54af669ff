"""Addresses that can't be joined are told before Ray asks on; a token's refusal is known from the head itself."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pipelines import joining
from pipelines.errors import RecipeError


@pytest.fixture(autouse=True)
def no_ray_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ADDRESS",
        "RAY_JOB_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(joining, "_TOKEN_FILE", tmp_path / "auth_token")


@pytest.fixture
def head() -> Iterator[str]:
    """Answers the one call as a head does whose token is "right"."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if ("authorization", "Bearer right") not in details.invocation_metadata:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            if details.method != "/ray.rpc.NodeInfoGcsService/GetClusterId":
                return None
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_the_right_token_may_join_however_it_is_given(
    head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    joining.check(head)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(RecipeError):
        joining.check(head)
    (tmp_path / "auth_token").write_text("right\n")
    joining.check(head)
    (tmp_path / "other").write_text("wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    with pytest.raises(RecipeError, match="refused the token"):
        joining.check(head)


def test_a_refused_token_is_told_with_what_to_set(head: str) -> None:
    with pytest.raises(RecipeError) as fault:
        joining.check(head)
    assert str(fault.value).splitlines() == [
        f"--address {head}: the cluster refused the token, or was given none",
        f"hint: {joining.TOKEN_HINT}",
    ]


def test_a_failed_connection_is_traced_back_to_the_token(head: str) -> None:
    fault = joining.refused(
        "auto", ConnectionError(f"Failed to connect to Ray cluster at {head}\nmore")
    )
    assert "refused the token" in str(fault)
    assert "no Ray cluster answers: Can't find" in str(
        joining.refused("auto", ValueError("Can't find"))
    )
    assert "no Ray cluster answers: ValueError" in str(joining.refused("auto", ValueError()))


def test_a_token_file_switches_the_token_on_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is taken back
    monkeypatch.delenv("RAY_AUTH_MODE")
    joining.use_token()
    assert joining.os.environ.get("RAY_AUTH_MODE") is None
    (tmp_path / "auth_token").write_text("t")
    joining.use_token()
    assert joining.os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    joining.use_token()
    assert joining.os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ray://h:10001", "Ray Client (ray://) gives no results while a task runs"),
        ("http://h:8265", "this is the address of the dashboard"),
    ],
)
def test_addresses_of_other_services_are_refused(
    address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError) as fault:
        joining.check(address)
    assert str(fault.value).startswith(f"--address {address}: {told}")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RecipeError) as fault:
        joining.check(joining.address_of(""))
    assert str(fault.value).startswith(f"RAY_ADDRESS={address}: {told}")


def test_a_port_that_nobody_listens_at_is_told_at_once() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(RecipeError, match="no Ray cluster answers"):
            joining.check(address)


def test_auto_is_for_jobs_and_for_those_who_named_a_cluster() -> None:
    assert joining.address_of("", {}) == ""
    assert joining.address_of("", {"RAY_ADDRESS": ""}) == ""
    assert joining.address_of("", {"RAY_ADDRESS": "h:1"}) == "auto"
    assert joining.address_of("", {"RAY_JOB_ID": "1"}) == "auto"
    assert joining.address_of("h:1", {"RAY_JOB_ID": "1"}) == "h:1"


def test_only_a_job_with_a_working_dir_has_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    with_one = {name: json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}})}
    assert joining.working_folder(with_one) == str(tmp_path)
    for other in ({}, {name: "{"}, {name: '{"runtime_env": {}}'}, {name: "[]"}):
        assert joining.working_folder(other) == ""
        assert joining.runtime({"A": "1"}, ["p"], other) == {
            "env_vars": {"A": "1"},
            "py_modules": ["p"],
        }


def test_what_a_job_has_said_is_not_said_again() -> None:
    """Ray refuses a driver that names a key of its job once more."""
    told = {"working_dir": "gcs://x.zip", "env_vars": {"A": "2"}}
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": told})}
    assert joining.runtime({"A": "1", "B": "1"}, ["p"], job) == {"env_vars": {"B": "1"}}
