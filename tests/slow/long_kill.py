"""Kill a run again and again, then let it end: python tests/slow/long_kill.py N SECONDS LOG -- COMMAND

N kills (SIGKILL), at random moments SECONDS apart in the mean; after each the same command starts again. Every third
waits for the next save and falls within it. The log tells when, and which checkpoint was the newest.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written, in a folder that gets its name when it is complete."""
    return any(workdir.glob("*/checkpoints/*/.*.tmp"))


def main() -> int:
    """Run the command line's command until it ends by itself."""
    kills, mean, log, dashes, *command = sys.argv[1:]
    assert dashes == "--"
    workdir = Path(next(part.partition("=")[2] for part in command if part.startswith("--workdir=")))
    draw, began = random.Random(0), time.time()
    with open(log, "a", buffering=1) as file:
        for number in range(int(kills) + 1):
            process = subprocess.Popen(command)
            wait = None if number == int(kills) else draw.uniform(0.5, 1.5) * float(mean)
            try:
                status = process.wait(wait)
                print(f"ended by itself with status {status} after {time.time() - began:.0f} s", file=file)
                return status
            except subprocess.TimeoutExpired:
                inside = saving(workdir)
                while number % 3 == 2 and not inside and process.poll() is None:
                    time.sleep(0.001)
                    inside = saving(workdir)
                if process.poll() is not None:
                    print(f"ended by itself with status {process.returncode} before kill {number + 1}", file=file)
                    return process.returncode
                process.send_signal(signal.SIGKILL)
                process.wait()
                steps = [int(path.name) for path in workdir.rglob("checkpoints/*/*") if path.name.isdecimal()]
                where = "inside a save" if inside else "between saves"
                when = f"kill {number + 1} after {time.time() - began:.0f} s, {where}"
                print(f"{when}, newest checkpoint at {max(steps, default=0)}", file=file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
