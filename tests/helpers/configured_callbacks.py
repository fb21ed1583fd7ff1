"""Callbacks that the files of conf/ name.

Use it where a test must cover every configured callback.
"""

import yaml
from builders import ROOT


def configured():
    """class_path -> settings of every callback that a file of conf/ names."""
    found = {}
    for path in (ROOT / "conf").rglob("*.yaml"):
        trainer = yaml.safe_load(path.read_text()).get("trainer", {})
        for each in [*trainer.get("callbacks", []), *trainer.get("callbacks+", [])]:
            found.setdefault(each["class_path"], each.get("init_args", {}))
    return found
