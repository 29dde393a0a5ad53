"""Run by the client's own Python: Microsoft's client for Dataverse, told in lines of JSON what to call.

The first line of the input is the address of the environment, which is that of the login too, and the tenant, client id
and secret. Each further line is an operation ("records.create"), its arguments and its options. Each is answered by a
line of the output: what was returned (`returned`), or the class and the parts of what was raised (`raised`).
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from types import ModuleType
from typing import Any

# The client imports both when it is loaded, 100 MB, and only its data frames use them, which nothing here asks for.
for name in ("numpy", "pandas"):
    sys.modules[name] = ModuleType(name)

from azure.core.exceptions import ClientAuthenticationError  # noqa: E402
from azure.identity import ClientSecretCredential  # noqa: E402
from PowerPlatform.Dataverse.client import DataverseClient  # noqa: E402
from PowerPlatform.Dataverse.core.errors import DataverseError  # noqa: E402


def call(client: DataverseClient, operation: str, arguments: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    try:
        if operation == "batch":
            return {"returned": batch(client, arguments, options)}
        namespace, _, method = operation.partition(".")
        return {"returned": getattr(getattr(client, namespace), method)(*arguments, **options)}
    except DataverseError as error:
        return {"raised": type(error).__name__, **error.to_dict()}
    except ClientAuthenticationError as error:
        return {"raised": type(error).__name__, "message": error.message}


def batch(client: DataverseClient, operations: Sequence[Any], options: dict[str, Any]) -> Any:
    """Each operation is the name of a method of `records`, and its arguments."""
    request = client.batch.new()
    for method, *arguments in operations:
        getattr(request.records, method)(*arguments)
    return request.execute(**options).responses


def plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) else list(value)


address, *login = json.loads(sys.stdin.readline())
# It would ask login.microsoftonline.com whether the login's address is known there.
credential = ClientSecretCredential(*login, authority=address, disable_instance_discovery=True)
with DataverseClient(address, credential) as client:
    print(json.dumps({"returned": None}), flush=True)
    for line in sys.stdin:
        print(json.dumps(call(client, *json.loads(line)), default=plain), flush=True)
