"""Work on numbered cases in a process that is watched: a hang or a crash costs one case alone."""

import multiprocessing
from collections.abc import Callable, Iterator

SECONDS, MEMORY = 10, 2**30  # allowed per case, and above the memory before the first case


def watch(cases: range, prepare: Callable[[], Callable[[int], str]]) -> Iterator[tuple[int, str]]:
    """Yield each case's number and result, of the function that `prepare` returns in the process.

    A case that takes more than `SECONDS`, ends the process, or raises its memory by more than
    `MEMORY` has the result "hang", "crash: …" or "memory: …"; the others go on behind it.
    """
    context = multiprocessing.get_context("spawn")
    start = cases.start
    while start < cases.stop:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(range(start, cases.stop), prepare, writer))
        process.start()
        writer.close()
        base = None
        try:
            while start < cases.stop:
                if not reader.poll(SECONDS if base is not None else 120):
                    yield start, "hang"
                    start += 1
                    break
                result = reader.recv()
                if base is None:  # the first message says that all is prepared
                    base = result
                    continue
                result, peak = result
                grown = peak - base
                yield start, result if grown < MEMORY else f"memory: {grown / 2**20:.0f} MB"
                start += 1
                if grown >= MEMORY:
                    break  # a peak stays: go on in a new process
        except EOFError:
            process.join()
            yield start, f"crash: exit code {process.exitcode}"
            start += 1
        process.kill()
        process.join()


def _work(cases: range, prepare: Callable[[], Callable[[int], str]], writer) -> None:
    work = prepare()
    writer.send(_peak_memory())
    for case in cases:
        writer.send((work(case), _peak_memory()))


def _peak_memory() -> int:
    """Return the most memory that this process ever had, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
