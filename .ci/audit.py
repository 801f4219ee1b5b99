"""Looks for known vulnerabilities in the locked requirements: run it by `make audit`.

Exit code 1 where there are some. Where the advisories cannot be asked for it says so, loudly, and exits with 0, or with
1 if it is told `strict`: whoever builds without a network is not kept from it, and nobody takes silence for health.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_TOOL = Path(sys.executable).with_name("pip-audit")
_SECONDS = 300
_QUESTION = ("--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json", "--requirement")


def main(requirements: str, strict: bool) -> int:
    """The exit code."""
    try:
        asked = subprocess.run(
            [_TOOL, *_QUESTION, requirements], check=False, capture_output=True, text=True, timeout=_SECONDS
        )
        found = json.loads(asked.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return unknown(f"no answer in {_SECONDS} s", strict)
    except json.JSONDecodeError:
        last = asked.stderr.strip().rpartition("\n")[2]
        return unknown(last, strict)
    return judge(found, strict)


def judge(found: list[dict[str, Any]], strict: bool) -> int:
    """What the tool's answer means. It skips packages that the service does not know, and calls that a success."""
    skipped = [one for one in found if "skip_reason" in one]
    vulnerable = [one for one in found if one.get("vulns")]
    for one in vulnerable:
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(f"VULNERABLE: {one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(f"{len(found) - len(skipped)} of {len(found)} packages audited, {len(vulnerable)} vulnerable")
    if vulnerable:
        return 1
    if skipped:
        return unknown(f"{len(skipped)} packages could not be looked up, as {skipped[0]['skip_reason']}", strict)
    return 0


def unknown(reason: str, strict: bool) -> int:
    """Says that it is not known, which is no good news."""
    print(f"*** NOT AUDITED: {reason} ***", file=sys.stderr)
    return int(strict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "strict" in sys.argv[2:]))
