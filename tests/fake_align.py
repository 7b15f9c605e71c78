"""What the tests of ``inr-batch`` run in place of ``inr-align``: a stack is a text that says what is to happen.

``sleep S`` takes so long, ``bad`` ends with status 2 and a sentence, ``crash`` with a traceback, ``abort`` by a signal.
Every start is noted in ``starts`` beside the stack, and a checkpoint is left when it is interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from inrtomo.batch.child import prepare


def result(axis: float = 0.0, **values: Any) -> dict[str, Any]:
    """As much of ``BASE_align.json`` as a batch looks at."""
    return {
        "verdict": "good", "reasons": ["the tilts agree"],
        "residual_rms_px": 0.4, "thickness_nm": 150.0, "tilt_axis_deg": axis, "excluded_tilts": [], "guard": None,
        "held_out_loss": None, "tilt_axis_ambiguous": False, "peak_memory_bytes": 2**30, **values,
    }  # fmt: skip


def main() -> None:
    prepare(int(sys.argv[1]))
    stack, out = Path(sys.argv[3]), Path(sys.argv[5])
    with open(stack.parent / "starts", "a", encoding="utf-8") as starts:
        starts.write(f"{stack.stem}\n")
    what, _, how = stack.read_text(encoding="utf-8").partition(" ")
    checkpoint = out / "checkpoint"
    try:
        if what == "sleep" and not checkpoint.exists():
            time.sleep(float(how))
    except KeyboardInterrupt:
        checkpoint.touch()
        print("inr-align: interrupted", file=sys.stderr)
        sys.exit(130)
    if what == "bad":
        print(f"inr-align: {stack}: no tilt angles found", file=sys.stderr)
        sys.exit(2)
    if what == "crash":
        raise RuntimeError("the worst case")
    if what == "abort":
        os.kill(os.getpid(), signal.SIGKILL)
    values = result(argv=sys.argv[1:], threads=os.environ.get("OMP_NUM_THREADS"))
    (out / f"{stack.stem}_align.json").write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main()
