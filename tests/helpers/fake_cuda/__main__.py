"""Run cases on fake CUDA tensors: python -m fake_cuda CASE...; prints a JSON line for each.

A case is a function of `fake_cuda.cases` with its arguments, such as "step:tiny:stage2:live".
"""

import json
import sys
import traceback

from fake_cuda import cases


def main():
    for case in sys.argv[1:]:
        name, *arguments = case.split(":")
        try:
            result = getattr(cases, name)(*arguments)
        except Exception:
            result = {"error": traceback.format_exc()[-4000:]}
        print(json.dumps({"case": case, **result}), flush=True)


if __name__ == "__main__":
    main()
