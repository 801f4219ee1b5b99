"""What `make audit` and `make sbom` make of what their tools say."""

import runpy
from pathlib import Path
from typing import Any

import pytest

CI = Path(__file__).parents[2] / ".ci"
AUDIT = runpy.run_path(str(CI / "audit.py"))
SBOM = runpy.run_path(str(CI / "sbom.py"))

FINE = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}]}
UNKNOWN = {"name": "odd", "skip_reason": "nobody knows it"}
WITH_A_URL = {"type": "website", "url": "https://example.org"}
LOCAL = {"type": "distribution", "url": "file:///somewhere"}
LOCKED: dict[str, Any] = {
    "name": "a_b",
    "version": "1.0",
    "externalReferences": [{"type": "distribution", "url": "https://index.example", "hashes": [{"content": "c0ffee"}]}],
}


@pytest.mark.parametrize(
    ("found", "code", "strict_code"),
    [([FINE], 0, 0), ([FINE, BAD], 1, 1), ([FINE, UNKNOWN], 0, 1), ([BAD, UNKNOWN], 1, 1), ([UNKNOWN], 0, 1)],
)
def test_vulnerability_fails_and_ignorance_only_where_that_is_asked(
    found: list[dict[str, Any]], code: int, strict_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (AUDIT["judge"](found, False), AUDIT["judge"](found, True)) == (code, strict_code)
    said = capsys.readouterr()
    assert ("VULNERABLE: bad 1.0: PYSEC-1, fixed in 1.1, 2.0" in said.out) == (BAD in found)
    # Loud, unless there is worse to tell.
    assert ("NOT AUDITED" in said.err) == (UNKNOWN in found and BAD not in found)


def test_component_gets_the_hashes_of_the_lock_and_no_path_of_this_machine() -> None:
    installed = {"name": "a-b", "version": "1.0", "licenses": [1], "externalReferences": [WITH_A_URL, LOCAL]}
    described = SBOM["described"](installed, LOCKED)
    assert described["externalReferences"] == [WITH_A_URL, *LOCKED["externalReferences"]]
    assert SBOM["described"](installed, None)["externalReferences"] == [WITH_A_URL]
    assert SBOM["canonical"]("A__b.C") == "a-b-c"


def test_component_of_another_version_or_without_a_licence_is_no_component() -> None:
    with pytest.raises(ValueError, match=r"installed as 2\.0, locked as 1\.0"):
        SBOM["described"]({"name": "a-b", "version": "2.0", "licenses": [1]}, LOCKED)
    with pytest.raises(LookupError):
        SBOM["described"]({"name": "a-b", "version": "1.0"}, LOCKED)
