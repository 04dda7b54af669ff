"""What is looked at before a Ray cluster is joined: an address that can be, something that answers, its token.

Ray itself asks on for half a minute and says no more than that nobody answers. Imports no ray.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import RecipeError

_ANSWER_S = 10.0  # how long a cluster may take to accept a connection
_TOKEN_FILE = Path.home() / ".ray" / "auth_token"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entrypoint of a job
_HEAD_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # takes and needs nothing but the token
TOKEN_HINT = (
    "the cluster asks for a token: put the one it was started with into ~/.ray/auth_token, RAY_AUTH_TOKEN or a "
    "file named by RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token (docs/cluster.md, Tokens)"
)


def working_folder(environment: Mapping[str, str] = os.environ) -> str:
    """The folder that Ray unpacked for this job (``--working-dir``); '' outside of such a job."""
    return os.getcwd() if _of_job(environment).get("working_dir") else ""


def runtime(
    variables: Mapping[str, str],
    packages: list[str],
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """The runtime environment of our tasks: what a job has said already stays, Ray takes no key twice.

    A job submitted with --working-dir has ``packages`` (folders) with it; another driver brings them along.
    """
    job = _of_job(environment)
    theirs = job.get("env_vars") or {}
    made: dict[str, Any] = {
        "env_vars": {name: value for name, value in variables.items() if name not in theirs}
    }
    if not job.get("working_dir") and not job.get("py_modules"):
        made["py_modules"] = packages
    return made


def _of_job(environment: Mapping[str, str]) -> dict[str, Any]:
    """The runtime environment of the Ray job that this process is the entrypoint of; {} for none."""
    try:
        return dict(json.loads(environment.get(_JOB, "{}")).get("runtime_env") or {})
    except (ValueError, AttributeError, TypeError):
        return {}


def address_of(given: str, environment: Mapping[str, str] = os.environ) -> str:
    """The address to join; '' where a Ray of this process's own is wanted. In a job it is "auto"."""
    if given:
        return given
    return "auto" if "RAY_JOB_ID" in environment or environment.get("RAY_ADDRESS") else ""


def use_token() -> None:
    """`ray start` asks for the token in ~/.ray/auth_token wherever that file is, and clients must say so."""
    if (
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or _TOKEN_FILE.is_file()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def check(address: str) -> None:
    """Raise RecipeError for an address that can't be joined, that nobody answers at, or that refuses the token."""
    where = f"--address {address}"
    if address == "auto" and os.environ.get("RAY_ADDRESS", "auto") != "auto":
        address = os.environ["RAY_ADDRESS"]
        where = f"RAY_ADDRESS={address}"
    if address.startswith("ray://"):
        raise RecipeError(
            where, "Ray Client (ray://) gives no results while a task runs",
            "submit the command as a job (`ray job submit`), or run it on a node with --address auto",
        )  # fmt: skip
    if address.startswith(("http://", "https://")):
        raise RecipeError(
            where, "this is the address of the dashboard, which takes jobs and not tasks",
            f"`ray job submit --address {address} --working-dir . -- python cli.py ...`; to join the cluster from one "
            "of its nodes, --address auto (unset RAY_ADDRESS, or set RAY_API_SERVER_ADDRESS instead)",
        )  # fmt: skip
    if not address.rpartition(":")[2].isdigit():
        return  # "auto": Ray knows where
    _check_answer(where, address)
    if not knows_token(address):
        raise RecipeError(where, "the cluster refused the token, or was given none", TOKEN_HINT)


def refused(address: str, fault: Exception) -> RecipeError:
    """What a failed ``ray.init`` means: no cluster, or the wrong token."""
    told = (str(fault).strip() or type(fault).__name__).splitlines()[0]
    where = f"--address {address}"
    found = re.search(r"[\w.\-]+:\d+", told)
    if "token" in told.lower() or (found and not knows_token(found[0])):
        return RecipeError(where, "the cluster refused the token, or was given none", TOKEN_HINT)
    return RecipeError(
        where, f"no Ray cluster answers: {told}",
        "start one with `ray start --head`, or leave --address out to use this machine; a node of the cluster must "
        "run on this machine: from elsewhere use `ray job submit`",
    )  # fmt: skip


def token() -> str:
    """The token that Ray would send: by RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, in that order."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    if told := os.environ.get("RAY_AUTH_TOKEN"):
        return told.strip()
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).read_text().strip()
    except OSError:
        return ""


def knows_token(address: str) -> bool:
    """Whether the head at a host:port takes our token. True also where it can't be asked: Ray will find out."""
    import grpc

    ours = token()
    metadata = [("authorization", f"Bearer {ours}")] if ours else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(
            _HEAD_CALL, request_serializer=bytes, response_deserializer=bytes
        )
        try:
            call(b"", timeout=_ANSWER_S, metadata=metadata)
        except grpc.RpcError as fault:
            return bool(fault.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True


def _check_answer(where: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as fault:
        raise RecipeError(
            where, f"no Ray cluster answers: {fault}",
            "start one with `ray start --head`, or leave --address out to use this machine",
        ) from fault  # fmt: skip
