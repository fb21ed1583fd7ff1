"""Runs `triptych` command lines in forks of one process that has imported everything.

Use it, through the fixture `forks`, where a test runs real command lines: a fork starts in
milliseconds. `commands.run` starts a new interpreter, which takes seconds.

Started as a program it reads a line of JSON for each group of commands, runs them at once, and
answers with a line for each command: its status and output.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import limited


class Forks:
    """Starts the program below; a context, so that it ends."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_):
        with limited(self.process, 30):
            self.process.communicate()

    def together(self, folder, *commands, environments=None, streams=None, apart=False):
        """Run commands at once in `folder`: [(status, output), ...].

        Args:
            streams: of a process of its own, one for all commands: what standard input, output and
                error are, see `put_stream`.
            apart: (status, standard output, standard error) of each command.
        """
        commands = [[str(word) for word in command] for command in commands]
        environments = environments or [{}] * len(commands)
        task = {"folder": str(folder), "commands": commands, "environments": environments}
        task |= {"streams": streams, "apart": apart}
        with limited(self.process, 600):
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            return [tuple(each) for each in json.loads(self.process.stdout.readline())]

    def __call__(self, folder, *command):
        """Run one command: (status, output)."""
        return self.together(folder, command)[0]

    def run(self, folder, *command):
        """Run one command as `commands.run` does; returns the finished process."""
        ((status, out, err),) = self.together(folder, command, apart=True)
        return subprocess.CompletedProcess(command, status, out, err)


def put_stream(descriptor, kind):
    """Give a fresh process a stream that is closed, full, broken, empty, or as it is (None)."""
    if kind == "closed":
        os.close(descriptor)
    elif kind == "broken":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, descriptor)
    elif kind is not None:
        device = {"full": "/dev/full", "empty": "/dev/null"}[kind]
        os.dup2(os.open(device, os.O_RDWR), descriptor)
    name = ("stdin", "stdout", "stderr")[descriptor]
    text = None if kind == "closed" else open(descriptor, "w" if descriptor else "r", closefd=False)
    setattr(sys, name, text)


def start(folder, command, environment, files, streams):
    """Fork a process that runs the command, its output in one file or in two; returns its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.chdir(folder)
        os.environ.update(environment)
        os.dup2(files[0].fileno(), 1)
        os.dup2(files[-1].fileno(), 2)
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        from triptych.cli.main import main

        rank = environment.get("RANK", environment.get("SLURM_PROCID", 0))
        rank_zero_only.rank = int(rank)  # it is read at the import
        if streams:
            for descriptor, kind in enumerate(streams):
                put_stream(descriptor, kind)
            sys.argv = ["triptych", *command]
        main(None if streams else command)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def serve():
    import triptych.callbacks
    import triptych.cli.lightning
    import triptych.data_modules  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        number = 2 if task["apart"] else 1
        outputs = [[tempfile.TemporaryFile() for _ in range(number)] for _ in task["commands"]]
        pids = [
            start(task["folder"], *each, task["streams"])
            for each in zip(task["commands"], task["environments"], outputs, strict=True)
        ]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        ended = []
        for status, files in zip(statuses, outputs, strict=True):
            for file in files:
                file.seek(0)
            ended.append([status, *(file.read().decode() for file in files)])
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve()
