"""Look up the packages of constraints.txt in a database of known vulnerabilities, with pip-audit.

Exit status: 0 every package was looked up and none is vulnerable, 1 some are, 2 the lookup failed.
pip-audit alone succeeds where an index answers "not found" for every package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def main() -> int:
    """Run pip-audit with the arguments of this command and print one line a finding."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS)]
    command += ["--require-hashes", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = done.stderr.strip().splitlines() or ["it printed nothing"]
        print(f"audit: pip-audit failed: {reason[-1]}", file=sys.stderr)
        return 2
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        for found in package["vulns"]:
            fixed = ", ".join(found.get("fix_versions", ())) or "no version"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    looked_up = len(packages) - len(skipped)
    print(f"audit: {looked_up} of {len(packages)} packages looked up, {len(vulnerable)} vulnerable")
    if skipped:
        print(f"audit: the database does not know {', '.join(skipped)}", file=sys.stderr)
    return 1 if vulnerable else 2 if skipped or not packages else 0


if __name__ == "__main__":
    sys.exit(main())
