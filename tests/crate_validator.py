"""Validate an RO-Crate by roc-validator without the internet; run by the Python of the environment that has it.

    python tests/crate_validator.py FOLDER CONTEXT PROFILE

CONTEXT is a file with the JSON-LD context that https://w3id.org/ro/crate/1.1/context would give, which is put into the
validator's cache. Prints what is required and not so, one line each.
"""

import io
import sys
import tempfile
from pathlib import Path

import requests
import requests_cache
from requests.adapters import BaseAdapter
from rocrate_validator import services
from rocrate_validator.models import Severity, ValidationSettings
from urllib3 import HTTPResponse

URL = "https://w3id.org/ro/crate/1.1/context"
TYPE = "application/ld+json"


class FromFile(BaseAdapter):
    """Answers every request with the content of a file."""

    def __init__(self, path: Path):
        super().__init__()
        self.content = path.read_bytes()

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response.headers["Content-Type"] = TYPE
        body = io.BytesIO(self.content)
        response.raw = HTTPResponse(
            body, headers={"Content-Type": TYPE}, status=200, preload_content=False, request_url=request.url
        )
        return response

    def close(self) -> None:
        pass


def main(folder: str, context: str, profile: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        path = f"{cache}/http"
        with requests_cache.CachedSession(path, backend="sqlite") as session:
            session.mount(URL, FromFile(Path(context)))
            session.get(URL, headers={"Accept": f"{TYPE}, application/json"})
            session.get(URL)
        settings = ValidationSettings(
            rocrate_uri=folder,
            profile_identifier=profile,
            requirement_severity=Severity.REQUIRED,
            offline=True,
            cache_path=path,
        )
        for issue in services.validate(settings).get_issues():
            print(f"{issue.check.identifier} {issue.violatingEntity or ''} {issue.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
