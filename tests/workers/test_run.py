"""What a script sees under `pysqlx-run`: the same as under `python`, and where it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .runs import JOINS_ANOTHER, finished, started


def script(directory: Path, text: str, name: str = "script.py") -> str:
    (directory / name).write_text(text)
    return name


def test_arguments_behind_the_script_are_the_scripts(tmp_path: Path):
    name = script(tmp_path, "import sys\nprint(sys.argv)")
    status, out, err = finished(tmp_path, "-w", "1", name, "-w", "5", "--name", "x", "--", "y")
    assert (status, out, err) == (0, ["[worker 0] ['script.py', '-w', '5', '--name', 'x', '--', 'y']"], [])


def test_a_script_is_the_main_module_as_under_python(tmp_path: Path):
    (tmp_path / "apart").mkdir()
    name = script(
        tmp_path,
        "import sys, neighbour\n"
        "main = sys.modules['__main__']\n"
        "print(__name__, __file__, __spec__, __package__, __cached__, main.__dict__ is globals(), sys.path[0])\n"
        "print(sorted(globals()))",
        "apart/script.py",
    )
    script(tmp_path, "", "apart/neighbour.py")
    plain = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, check=True)
    status, out, _ = finished(tmp_path, "--no-prefix", name)
    assert status == 0
    assert out[0] == plain.stdout.splitlines()[0]
    ignored = {"'__annotations__'"}  # python makes one before the code has any
    assert set(out[1].strip("[]").split(", ")) | ignored == set(plain.stdout.splitlines()[1].strip("[]").split(", "))


def test_main_stays_to_the_very_end(tmp_path: Path):
    name = script(
        tmp_path,
        "import atexit, pickle, threading\n"
        "class Job:\n"
        "    pass\n"
        "def look(where):\n"
        "    print(where, type(pickle.loads(pickle.dumps(Job()))) is Job)\n"
        "main = threading.current_thread()\n"
        "atexit.register(look, 'atexit')\n"
        "threading.Thread(target=lambda: (main.join(0.05), look('thread'))).start()\n",
    )
    status, out, err = finished(tmp_path, "--no-prefix", name)
    assert (status, out, err) == (0, ["thread True", "atexit True"], [])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_script_may_start_processes_of_its_own(tmp_path: Path, method: str):
    name = script(
        tmp_path,
        "import multiprocessing, sys\n"
        "def double(number):\n"
        "    return 2 * number\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:\n"
        "        print(pool.map(double, [1, 2, 3]))\n",
    )
    assert finished(tmp_path, "--no-prefix", name, method) == (0, ["[2, 4, 6]"], [])


def test_a_forked_child_of_a_script_dies_of_term(tmp_path: Path):
    name = script(
        tmp_path,
        "import multiprocessing, time\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "child.start(); child.terminate(); child.join(); print(child.exitcode)\n",
    )
    assert finished(tmp_path, "--no-prefix", name) == (0, ["-15"], [])


def test_a_module_runs_as_with_python_m(tmp_path: Path):
    (tmp_path / "shop").mkdir()
    script(tmp_path, "", "shop/__init__.py")
    text = "import sys\nprint(__name__, __package__, __spec__.name, sys.argv, sys.path[0])"
    script(tmp_path, text, "shop/jobs.py")
    script(tmp_path, text, "shop/__main__.py")
    for module in ("shop.jobs", "shop"):
        plain = subprocess.run(
            [sys.executable, "-m", module, "a"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert finished(tmp_path, "--no-prefix", module, "a") == (0, plain.stdout.splitlines(), [])


def test_a_callable_is_called_and_a_coroutine_function_is_run(tmp_path: Path):
    script(
        tmp_path,
        "import asyncio, sys\n"
        "def plain():\n    print('plain', sys.argv)\n"
        "class Shop:\n    @staticmethod\n    async def main():\n"
        "        await asyncio.sleep(0); print('async', __name__)\n",
        "shop.py",
    )
    assert finished(tmp_path, "--no-prefix", "shop:plain", "x") == (0, ["plain ['shop:plain', 'x']"], [])
    assert finished(tmp_path, "--no-prefix", "shop:Shop.main") == (0, ["async shop"], [])


@pytest.mark.parametrize(("loop", "package"), [("auto", "uvloop"), ("asyncio", "asyncio")])
def test_the_loop_of_asyncio_run_is_the_one_asked_for(tmp_path: Path, loop: str, package: str):
    pytest.importorskip("uvloop")
    name = script(
        tmp_path,
        "import asyncio\nasync def main():\n    print(type(asyncio.get_running_loop()).__module__.split('.')[0])\n"
        "asyncio.run(main())",
    )
    assert finished(tmp_path, "--no-prefix", "--loop", loop, name) == (0, [package], [])


def test_each_worker_knows_its_place(tmp_path: Path):
    name = script(
        tmp_path,
        "import os\n"
        "for name in ('RUN_NAME', 'WORKER_ID', 'WORKER_COUNT', 'WORKER_RESTARTS', 'COORDINATOR'):\n"
        "    print(name, os.environ['PYSQLX_' + name])\n"
        "assert os.environ['PYSQLX_RUN_ID']\n",
    )
    status, out, _ = finished(tmp_path, "-w", "2", "--name", "mine", name, PYSQLX_COORDINATOR=JOINS_ANOTHER)
    assert status == 0
    for worker in "01":
        assert [line for line in out if line.startswith(f"[worker {worker}]")] == [
            f"[worker {worker}] RUN_NAME mine",
            f"[worker {worker}] WORKER_ID {worker}",
            f"[worker {worker}] WORKER_COUNT 2",
            f"[worker {worker}] WORKER_RESTARTS 0",
            f"[worker {worker}] COORDINATOR {JOINS_ANOTHER}",
        ]


def test_pools_in_workers_read_the_command_line_and_the_settings_file(tmp_path: Path):
    (tmp_path / "my.env").write_text("PYSQLX_MAX_SIZE=5\nPYSQLX_MIN_SIZE=2\nPYSQLX_URI=sqlite:./file.db\n")
    name = script(
        tmp_path,
        "import os\nos.chdir('/')\nfrom pysqlx_engine.settings import load_pool_settings\n"
        "s = load_pool_settings()\nprint(s.max_size, s.min_size, s.uri.get_secret_value())",
    )
    arguments = ("--no-prefix", "--settings", "my.env", "--max-size", "7", name)
    status, out, _ = finished(tmp_path, *arguments, PYSQLX_MIN_SIZE="3")
    assert (status, out) == (0, ["7 3 sqlite:./file.db"])


def test_a_worker_reads_nothing_from_the_terminal(tmp_path: Path):
    name = script(tmp_path, "import os, sys\nprint(repr(sys.stdin.read()), os.read(0, 1))")
    assert finished(tmp_path, "--no-prefix", name) == (0, ["'' b''"], [])


def test_a_worker_of_a_single_worker_run_loads_no_zeromq(tmp_path: Path):
    name = script(tmp_path, "import sys\nprint('zmq' in sys.modules)")
    assert finished(tmp_path, "--no-prefix", name) == (0, ["False"], [])


def test_each_line_bears_its_workers_name_and_goes_where_it_went(tmp_path: Path):
    name = script(
        tmp_path,
        "import sys\nsys.stdout.buffer.write(b'a\\n\\n\\xff b\\nno end')\nprint('e', file=sys.stderr)",
    )
    with started(tmp_path, name, stderr=subprocess.PIPE) as run:
        stdout, stderr = run.process.communicate(timeout=20)
    assert stdout == b"[worker 0] a\n[worker 0] \n[worker 0] \xff b\n[worker 0] no end\n"
    assert stderr == b"[worker 0] e\n"


def test_a_lot_of_output_arrives_whole_and_in_order(tmp_path: Path):
    name = script(tmp_path, "for number in range(20000):\n    print(number, 'x' * 50)")
    status, out, _ = finished(tmp_path, "-w", "2", name, PYSQLX_COORDINATOR=JOINS_ANOTHER)
    assert status == 0
    for worker in (0, 1):
        lines = [line for line in out if line.startswith(f"[worker {worker}] ")]
        assert lines == [f"[worker {worker}] {number} {'x' * 50}" for number in range(20000)]


def test_a_line_is_printed_when_it_is_complete_not_when_the_script_ends(tmp_path: Path):
    name = script(tmp_path, "import time\nprint('soon')\ntime.sleep(60)")
    with started(tmp_path, name) as run:
        assert run.line() == "[worker 0] soon"
        run.process.terminate()


def test_a_traceback_reads_as_python_prints_it(tmp_path: Path):
    name = script(tmp_path, "def f():\n    raise ValueError('no')\ntry:\n    f()\nexcept ValueError:\n    {}['k']\n")
    plain = subprocess.run([sys.executable, str(tmp_path / name)], capture_output=True, text=True, check=False)
    status, out, err = finished(tmp_path, "--no-prefix", "--restart", "never", name)
    assert (status, out) == (1, [])
    assert err == [*plain.stderr.splitlines(), "pysqlx-run: worker 0 ended with status 1"]


def test_sys_exit_with_a_text_prints_it_and_fails(tmp_path: Path):
    status, _, err = finished(tmp_path, "--restart", "never", script(tmp_path, "import sys\nsys.exit('no more')"))
    assert (status, err) == (1, ["[worker 0] no more", "pysqlx-run: worker 0 ended with status 1"])


def test_any_status_but_0_of_a_script_is_1_for_the_run(tmp_path: Path):
    name = script(tmp_path, "import os, sys\nsys.exit(0 if os.environ['PYSQLX_WORKER_ID'] == '0' else 7)")
    arguments = ("-w", "2", "--restart", "never", name)
    status, _, err = finished(tmp_path, *arguments, PYSQLX_COORDINATOR=JOINS_ANOTHER)
    assert (status, err) == (1, ["pysqlx-run: worker 1 ended with status 7"])


def test_help_names_every_option_with_its_variable_and_every_status(tmp_path: Path):
    status, out, _ = finished(tmp_path, "--help")
    text = " ".join(" ".join(out).split())
    assert status == 0
    for option in ("workers", "max-size", "settings", "uri", "restart", "graceful-timeout", "name", "loop"):
        assert f"--{option}" in text
        assert f"PYSQLX_{option.upper().replace('-', '_')}" in text
    for word in ("--no-prefix", "PYSQLX_PREFIX", "--coordinator", "--version", "exit status", "default on-failure"):
        assert word in text


@pytest.mark.parametrize("options", [[], ["--no-prefix"]], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("descriptor", [0, 1, 2], ids=["stdin", "stdout", "stderr"])
def test_a_script_runs_although_a_standard_stream_is_closed(tmp_path: Path, descriptor: int, options: list[str]):
    name = script(
        tmp_path,
        "import os, pathlib, sys\n"
        "print('out', flush=True)\n"
        "print('err', file=sys.stderr, flush=True)\n"
        "pathlib.Path('ran-' + os.environ['PYSQLX_WORKER_ID']).touch()\n",
    )
    status, out, err = finished(tmp_path, *options, "-w", "2", name, shell=f"exec {descriptor}>&-")
    assert status == 0
    assert {path.name for path in tmp_path.glob("ran-*")} == {"ran-0", "ran-1"}
    assert (len(out), len(err)) == (0 if descriptor == 1 else 2, 0 if descriptor == 2 else 2)


@pytest.mark.parametrize("descriptor", [1, 2], ids=["stdout", "stderr"])
def test_an_error_is_printed_to_stderr_or_nowhere(tmp_path: Path, descriptor: int):
    status, out, err = finished(tmp_path, "missing.py", shell=f"exec {descriptor}>&-")
    assert (status, out, len(err)) == (3, [], 0 if descriptor == 2 else 1)


def test_the_supervisor_is_found_by_title_without_the_password_of_its_command_line(tmp_path: Path):
    name = script(tmp_path, "import time\nprint('up')\ntime.sleep(60)")
    with started(tmp_path, "--name", "shop", "--uri", "postgresql://u:hunter2@h/d", name) as run:
        run.line_with("up")
        assert run.pid_titled("pysqlx-run: supervisor shop") == run.process.pid
        assert run.pid_titled("pysqlx-run: worker 0")
        shown = [Path(f"/proc/{pid}/{file}").read_bytes() for pid in run.pids() for file in ("cmdline", "environ")]
        assert not any(b"hunter2" in text for text in shown)
        run.process.terminate()


def test_nothing_that_a_worker_sends_ends_the_supervisor(tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "import os, socket\n"
        "for name in os.listdir('/proc/self/fd'):\n"
        "    if os.path.exists(f'/proc/self/fd/{name}') and 'socket' in os.readlink(f'/proc/self/fd/{name}'):\n"
        "        other = socket.socket(fileno=os.dup(int(name)))\n"
        "        if other.type == socket.SOCK_SEQPACKET:\n"
        "            for text in (b'{', b'[' * 60_000, b'{\"type\":\"pool_started\",\"a\":' + b'[' * 60_000):\n"
        "                other.send(text)\n"
        "print('sent')\n"
    )
    status, out, err = finished(tmp_path, "script.py")
    assert (status, out) == (0, ["[worker 0] sent"])
    assert err == [
        f"pysqlx-run: worker 0 sent something that is no message ({size} bytes): ignored"
        for size in (1, 60_000, 60_027)
    ]
