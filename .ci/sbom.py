"""Writes what the server is made of, as CycloneDX JSON: run it by `make sbom`.

One tool knows the licences of what is installed, tests and linters included; the lock knows what of it the server
needs, and the hashes. So the tool is asked for both, and what the lock names is kept.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_TOOL = Path(sys.executable).with_name("cyclonedx-py")
_OPTIONS = ("--output-format", "JSON", "--output-reproducible", "--pyproject", "pyproject.toml")
# Our own, which no lock has hashes of.
_OURS = {"famulus"}
# Of packages that do not declare theirs.
_LICENCES = {"protobuf": "BSD-3-Clause"}


def main(python: str, requirements: str, target: str) -> None:
    """Describes the environment of `python` as far as it stands in `requirements`."""
    locked = {canonical(one["name"]): one for one in _ask("requirements", requirements)["components"]}
    bill = _ask("environment", python)
    bill["components"] = [
        described(one, locked.get(canonical(one["name"])))
        for one in bill["components"]
        if canonical(one["name"]) in locked.keys() | _OURS
    ]
    kept = {bill["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in bill["components"])}
    bill["dependencies"] = [
        {**one, "dependsOn": [ref for ref in one.get("dependsOn", ()) if ref in kept]}
        for one in bill["dependencies"]
        if one["ref"] in kept
    ]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(bill['components'])} components")


def described(component: dict[str, Any], locked: dict[str, Any] | None) -> dict[str, Any]:
    """The component with its licence and the files that the lock allows for it. Raises ValueError where
    the versions differ, LookupError where nobody knows the licence."""
    if locked is not None and component["version"] != locked["version"]:
        raise ValueError(f"{component['name']} is installed as {component['version']}, locked as {locked['version']}")
    licences = component.get("licenses")
    if not licences:
        licences = [{"license": {"id": _LICENCES[component["name"]]}}]
    # What is installed from this folder is nowhere else.
    known = [one for one in component.get("externalReferences", ()) if not one["url"].startswith("file:")]
    files = [one for one in locked["externalReferences"] if one["type"] == "distribution"] if locked else []
    return {**component, "licenses": licences, "externalReferences": [*known, *files]}


def canonical(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _ask(kind: str, what: str) -> Any:
    return json.loads(subprocess.run([_TOOL, kind, *_OPTIONS, what], check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
