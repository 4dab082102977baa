"""
Draws a bar with tqdm, in a process of its own: see `numpy.deferred.progress`.

Lines with the elements done, all of them, and the seconds since the start come from
the standard input; what finds tqdm, `sys.path`, is the argument.
"""

import json
import signal
import sys

EVERY = 0.1 if sys.stderr is not None and sys.stderr.isatty() else 5


def draw(tqdm, lines):
    bar = None
    for line in lines:
        done, total, seconds = line.split()
        first = bar is None
        if first:
            bar = tqdm(
                total=int(total),
                desc="calculating",
                unit_scale=True,
                mininterval=EVERY,
                delay=1e-9,  # it shows nothing before it knows anything
            )
            bar.start_t -= float(seconds)
        bar.update(int(done) - bar.n)
        if first:
            bar.refresh()
    if bar is not None:
        bar.close()


if __name__ == "__main__":
    # An interrupt is for the calculation, whose end is the end of the lines.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = json.loads(sys.argv[1])
    from tqdm import tqdm

    draw(tqdm, sys.stdin)
