"""This machine's settings for clouds: servers, accounts and keys, where each cloud's own tools look for them."""

from __future__ import annotations

import configparser
import json
import os
import re

from gaeanet.errors import RequestError
from gaeanet.runtime.files import expanded

_GCLOUD = "~/.config/gcloud/application_default_credentials.json"
TOLD_BY = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_HOST")
"""Prefixes of the environment variables that configure it."""


def endpoint_of(scheme: str) -> str:
    """The server that the environment names in place of the cloud's own."""
    names = {
        "gs": ("STORAGE_EMULATOR_HOST", "GOOGLE_BASE_URL"),
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    }
    return next((os.environ[name] for name in names[scheme] if os.environ.get(name)), "")


def settings_of(scheme: str) -> dict[str, str]:
    """What the clouds' own tools read and obstore does not."""
    if scheme == "gs" and (host := os.environ.get("STORAGE_EMULATOR_HOST")):
        emulator = {"gcs_base_url": host.rstrip("/"), "disable_oauth": True, "client_email": "", "private_key": ""}
        return {"service_account_key": json.dumps({**emulator, "private_key_id": ""})}
    if scheme == "s3":
        endpoint = {"endpoint": endpoint_of("s3")} if endpoint_of("s3") else {}
        return {**endpoint, **({} if os.environ.get("AWS_ACCESS_KEY_ID") else _aws_profile())}
    if scheme == "az":
        return _azure_settings()
    return {}


def _azure_settings() -> dict[str, str]:
    """Account, key and endpoint as the az command line and Azure's libraries name them."""
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = {key.lower(): value for key, _, value in (part.partition("=") for part in text.split(";"))}
    settings = {
        "account_name": os.environ.get("AZURE_STORAGE_ACCOUNT") or parts.get("accountname"),
        "account_key": os.environ.get("AZURE_STORAGE_KEY") or parts.get("accountkey"),
        "sas_token": os.environ.get("AZURE_STORAGE_SAS_TOKEN") or parts.get("sharedaccesssignature"),
        "endpoint": endpoint_of("az") or parts.get("blobendpoint"),
    }
    return {key: value for key, value in settings.items() if value}


def _aws_profile() -> dict[str, str]:
    """Keys and region of the AWS profile in use, from ~/.aws.

    Read here, since obstore itself opens neither of these files, and its provider that does is boto3's: 34 MB for
    four values, and only from Python 3.11 on.
    """
    name = os.environ.get("AWS_PROFILE", "default")
    values: dict[str, str] = {}
    for variable, default, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(expanded(os.environ.get(variable, default)))
        except (configparser.Error, RequestError, OSError, ValueError):  # no home, no text, not to be read
            continue
        if parser.has_section(section):
            wanted = ("region", "aws_access_key_id", "aws_secret_access_key", "aws_session_token")
            values |= {key: parser[section][key] for key in wanted if key in parser[section]}
    return values


def has_credentials(scheme: str) -> bool:
    """Whether this machine names credentials for such buckets, other than those a cloud gives its own machines."""
    if scheme == "gs":
        names = ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"]
        names += ["GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN", "STORAGE_EMULATOR_HOST"]
        return any(os.environ.get(name) for name in names) or _is_json(_GCLOUD)
    if scheme == "s3":
        names = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"]
        names += ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"]
        return any(os.environ.get(name) for name in names) or "aws_access_key_id" in _aws_profile()
    return any(
        name.startswith("AZURE_") and re.search("KEY|TOKEN|SECRET|CLIENT|CONNECTION", name) for name in os.environ
    )


def _is_json(path: str) -> bool:
    try:
        return bool(json.loads(expanded(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, RequestError):
        return False
