"""Worker processes."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from dfd_utils.runtime.workers import worker_context


@pytest.mark.parametrize("name", ["no_such_module", "dfd_utils.data.no_such_module"])
def test_a_module_that_does_not_exist_is_refused(name):
    with pytest.raises(ImportError, match=name):
        worker_context("dfd_utils.config", name)


def test_workers_start_from_a_server_that_has_imported_the_modules():
    code = (
        "import sys\n"
        "from tests.runtime.test_workers import imported_in_worker\n"
        "if __name__ == '__main__':\n"
        "    assert 'colorsys' not in sys.modules\n"
        "    assert imported_in_worker('colorsys')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def imported_in_worker(module: str) -> bool:
    with ProcessPoolExecutor(1, worker_context(module)) as pool:
        return pool.submit(is_imported, module).result()


def is_imported(module: str) -> bool:
    return module in sys.modules


def page_faults(first: str) -> int:
    """Return the page faults of filling 64 MB twenty times over, after the line `first`."""
    code = (
        f"import resource, numpy\n{first}\nnumpy.ones(2**23)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): numpy.ones(2**23)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept():
    kept = page_faults("from dfd_utils.runtime.workers import configure_malloc; configure_malloc()")
    assert kept < 100
    assert page_faults("") > 600  # the default; at least a fault per 2 MB
