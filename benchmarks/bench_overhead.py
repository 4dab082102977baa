"""
What the patches cost where nothing is deferred, against stock NumPy.

Both builds run the same statements in worker processes that take turns on one
CPU, so that whatever slows the machine meets both.  Each pair of processes gives
one ratio a statement per round; new pairs average out what differs from one
process to the next (addresses, hash seeds).  Fails when the median of the
statements' median ratios exceeds the limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import timeit
from pathlib import Path

SIZES = (1, 100, 10_000)
STATEMENTS = {
    "np.add": "add(a, b)",
    "np.multiply": "multiply(a, b)",
    "slicing": "a[::2]",
    "a[0]": "a[0]",
    "np.asarray": "asarray(a)",
}
SECONDS_A_SAMPLE = 0.004


# In the worker: requests are JSON lines, answers are seconds a call.


def work(expected):
    import numpy as np

    if not Path(np.__file__).is_relative_to(expected):
        raise SystemExit(f"NumPy came from {np.__file__}, not from {expected}")
    timers = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = request["statement"], request["size"]
        if key not in timers:
            timers[key] = timeit.Timer(
                STATEMENTS[key[0]],
                globals={
                    "add": np.add,
                    "multiply": np.multiply,
                    "asarray": np.asarray,
                    "a": np.ones(key[1]),
                    "b": np.ones(key[1]),
                },
            )
        number = request["number"]
        print(timers[key].timeit(number) / number, flush=True)


class Worker:
    def __init__(self, site_packages, deferred):
        env = dict(os.environ, PYTHONPATH=str(site_packages), NUMPY_DEFERRED=deferred)
        command = [sys.executable, __file__, "--work", str(site_packages)]
        self.process = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def time(self, statement, size, number):
        request = {"statement": statement, "size": size, "number": number}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a worker died; its message is above")
        return float(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def calls_a_sample(worker, statement, size):
    """How many calls fill a sample; this also warms the worker up."""
    number = 100
    while (seconds := worker.time(statement, size, number) * number) < SECONDS_A_SAMPLE:
        number = int(number * max(1.5, SECONDS_A_SAMPLE / max(seconds, 1e-6)))
    return number


def sample_pair(patched, stock, rounds, results):
    """Run all statements on one pair of workers, adding to `results`."""
    for key, samples in results.items():
        number = calls_a_sample(stock, *key)
        calls_a_sample(patched, *key)
        for i in range(rounds):
            order = [patched, stock] if i % 2 else [stock, patched]
            times = {id(worker): worker.time(*key, number) for worker in order}
            samples.append((times[id(patched)], times[id(stock)]))


def measure(patched_site, stock_site, pairs, rounds, deferred):
    results = {(name, size): [] for name in STATEMENTS for size in SIZES}
    for i in range(pairs):
        print(f"processes, pair {i + 1} of {pairs}", file=sys.stderr)
        workers = Worker(patched_site, deferred), Worker(stock_site, deferred)
        try:
            sample_pair(*workers, rounds, results)
        finally:
            for worker in workers:
                worker.close()
    return results


def summarize(key, samples):
    patched, stock = zip(*samples, strict=True)
    return {
        "statement": key[0],
        "size": key[1],
        "patched_ns": statistics.median(patched) * 1e9,
        "stock_ns": statistics.median(stock) * 1e9,
        "min_ratio": min(patched) / min(stock),
        "median_ratio": statistics.median(p / s for p, s in samples),
    }


def print_table(rows):
    print(
        f"{'statement':<12} {'size':>6} {'stock ns':>9} {'patched ns':>10} "
        f"{'min ratio':>9} {'median ratio':>12}"
    )
    for row in rows:
        print(
            f"{row['statement']:<12} {row['size']:>6} {row['stock_ns']:>9.1f} "
            f"{row['patched_ns']:>10.1f} {row['min_ratio']:>9.3f} "
            f"{row['median_ratio']:>12.3f}"
        )


def patched_site_packages():
    import numpy as np

    return Path(np.__file__).parents[1]


def pin_to_one_cpu(cpu):
    if cpu is None:
        cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument(
        "--stock",
        type=Path,
        default=os.environ.get("NUMPY_STOCK"),
        help="site-packages of stock NumPy [NUMPY_STOCK]",
    )
    parser.add_argument("--pairs", type=int, default=10, help="of processes")
    parser.add_argument("--rounds", type=int, default=10, help="a statement and pair")
    parser.add_argument("--limit", type=float, default=1.02)
    parser.add_argument(
        "--deferred",
        default="0",
        choices=["0", "none"],
        help="the state in which nothing is deferred",
    )
    parser.add_argument("--cpu", type=int, help="to run on; the last by default")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work)
    if options.stock is None:
        parser.error("give --stock or set NUMPY_STOCK")
    pin_to_one_cpu(options.cpu)
    results = measure(
        patched_site_packages(),
        Path(options.stock).resolve(),
        options.pairs,
        options.rounds,
        options.deferred,
    )
    rows = [summarize(key, samples) for key, samples in results.items()]
    median = statistics.median(row["median_ratio"] for row in rows)
    print_table(rows)
    print(f"median of the median ratios: {median:.3f} (limit {options.limit})")
    if options.json:
        options.json.write_text(json.dumps({"median": median, "rows": rows}, indent=2))
    return int(median > options.limit)


if __name__ == "__main__":
    sys.exit(main())
