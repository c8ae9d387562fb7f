"""A babai-server of a bench's own on a free port, driven by the babai command."""
import json
import pathlib
import re
import subprocess
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class CommandFailed(SystemExit):
    """A babai command was refused or failed; uncaught, it ends the bench with the command's own words."""


class LocalServer:
    def __init__(self, bin_dir, roots, threads=2, data_dir=None, flags=()):
        self.bin = pathlib.Path(bin_dir or REPOSITORY / "build/release/bin")
        self._temp = None if data_dir else tempfile.TemporaryDirectory(prefix="babai-bench-")
        data = pathlib.Path(data_dir or self._temp.name)
        data.mkdir(parents=True, exist_ok=True)
        self.log = open(data / "server.log", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [self.bin / "babai-server", "--listen", "127.0.0.1:0", "--metrics_listen", "127.0.0.1:0", "--threads", str(threads),
             "--data_dir", str(data / "data"), "--model_roots", ",".join(str(r) for r in roots), *flags],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        match = re.search(r"listen=(\S+)", line)
        if not match:
            raise SystemExit(f"babai-server did not start: see {self.log.name}")
        self.address = match[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()
        if self._temp:
            self._temp.cleanup()

    def babai(self, *command):
        """The JSON object of one babai command, or CommandFailed."""
        run = subprocess.run([self.bin / "babai", "--server", self.address, "--json", *map(str, command)],
                             capture_output=True, text=True, check=False)
        if run.returncode:
            raise CommandFailed(f"babai {' '.join(map(str, command))}: {run.stderr.strip()}")
        return json.loads(run.stdout) if run.stdout.strip() else {}
