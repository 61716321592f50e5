#!/usr/bin/env python3
"""svdjob and its peers on one matrix, in one run, with accuracy measured by one yardstick.

  python3 tests/peers/compare.py --matrix films --rank 20

Factors the same matrix with scikit-learn, SciPy, Dask, Spark (if asked) and svdjob, each in a fresh process, and
measures for each the time, the peak memory, the reads of the matrix and, in float64 with its own copy of the matrix,
the residual of every triplet, sqrt(|A v - s u|^2 + |A^T u - s v|^2) / s, the error of the singular values and how
orthonormal U and V are. README.md beside this file tells what each column means and what is fair about it.

This file needs Python 3.11 or newer and nothing else: it makes a virtual environment and installs the peers there.

Exit codes: 0 done; 1 svdjob failed, or its claimed residuals are not what this script measures; 2 wrong flags;
3 no environment could be made or the matrix could not be read; 130 interrupted. A peer that fails is a row that
says why, and changes nothing else.
"""
# The part above the line "in the environment" runs in whatever Python starts it, so it imports the standard library
# alone. It starts this same file in the environment's Python, once for each peer, with `--worker TASK`, a file that
# says what to do and where to put the answer.
import argparse
import collections
import csv
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(os.path.dirname(HERE))
# These were current together and agree with each other on Python 3.11 and newer.
PINNED = ["numpy==2.4.6", "scipy==1.17.1", "scikit-learn==1.9.1", "dask[array,distributed]==2026.8.0"]
PINNED_PLOT = ["matplotlib==3.11.2"]
PINNED_SPARK = ["pyspark==4.0.5"]
MIB = 1 << 20
# Above so many entries the reference singular values are only computed when asked for: ARPACK in f64 takes long.
SMALL = 5_000_000


class Trouble(Exception):
    """Something the user should be told in a sentence, with an exit code."""

    def __init__(self, text, code=3):
        super().__init__(text)
        self.code = code


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------- processes

LIVE = []  # every process started and not yet waited for; ended when this script ends, however it ends
Ended = collections.namedtuple("Ended", "code wall peak timed_out")


def descendants(pid):
    """All processes below `pid`, from /proc; none where there is no /proc (the process group has to do there)."""
    parents = collections.defaultdict(list)
    try:
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as f:
                        parents[int(f.read().rpartition(")")[2].split()[1])].append(int(name))
                except (OSError, IndexError, ValueError):
                    pass  # it ended while we looked
    except OSError:
        return []
    found, queue = [], [pid]
    while queue:
        below = parents[queue.pop()]
        found += below
        queue += below
    return found


def start(command, env, log):
    """Starts a process in a group of its own, so that all of it can be ended, with its output in files."""
    with open(log + ".out", "wb") as out, open(log + ".err", "wb") as err:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   start_new_session=True)
    process.began = time.perf_counter()
    LIVE.append(process)
    return process


def strike(process, number):
    for what, pid in [(os.killpg, process.pid)] + [(os.kill, p) for p in process.below]:
        try:
            what(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def end(processes):
    """Ends processes and all below them: asks all of them first, insists 3 s later."""
    processes = [p for p in processes if p in LIVE]
    for process in processes:
        process.below = descendants(process.pid)
        strike(process, signal.SIGTERM)
    until = time.monotonic() + 3
    while time.monotonic() < until and any(p.returncode is None and p.poll() is None for p in processes):
        time.sleep(0.02)
    for process in processes:
        strike(process, signal.SIGKILL)
        process.wait()
        LIVE.remove(process)


def finish(process, timeout):
    """Waits for a process; gives its exit code, wall time and peak memory (ru_maxrss of this one process)."""
    late = threading.Event()

    def too_late():
        late.set()
        process.below = descendants(process.pid)
        strike(process, signal.SIGTERM)
        time.sleep(3)
        if process.returncode is None:
            strike(process, signal.SIGKILL)

    timer = threading.Timer(timeout, too_late)
    timer.daemon = True
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    wall = time.perf_counter() - process.began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.below = getattr(process, "below", [])
    strike(process, signal.SIGKILL)  # whatever it had started must not outlive it
    LIVE.remove(process)
    return Ended(process.returncode, wall, maxrss(usage), late.is_set())


def maxrss(usage):
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def tail(log, lines=6):
    """The last lines of what a process said, for a person who wants to know why."""
    said = []
    for name in (log + ".err", log + ".out"):
        try:
            with open(name, encoding="utf-8", errors="replace") as f:
                said = [line.rstrip() for line in f if line.strip()]
        except OSError:
            pass
        if said:
            break
    return said[-lines:]


def why(ended, log, timeout):
    if ended.timed_out:
        return f"not done after {timeout:g} s (--timeout)"
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return f"ended by {name}" + (", out of memory?" if name == "SIGKILL" else "")
    said = tail(log)
    # svdjob says "error: ..." first and explains below; Python says what it was in the last line
    errors = [line for line in said if line.startswith("error")]
    return f"exit {ended.code}: {(errors or said or ['it said nothing'])[-1]}"


# ---------------------------------------------------------------------------------------------------- environment

def cache_directory():
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Caches")
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")


def environment(directory, packages, work, unpinned):
    """The Python of a virtual environment that has `packages`; makes it, or adds what is missing."""
    if unpinned:
        packages = [p.partition("==")[0] for p in packages]
    marker = os.path.join(directory, "svdjob-peers.json")
    python = os.path.join(directory, "bin", "python")
    version = ".".join(map(str, sys.version_info[:2]))
    have = {"python": None, "packages": []}
    if os.path.exists(marker):
        with open(marker, encoding="utf-8") as f:
            have = json.load(f)
    if have["python"] == version and set(packages) <= set(have["packages"]) and os.path.exists(python):
        return python
    if os.path.isdir(directory) and os.listdir(directory) and not os.path.exists(os.path.join(directory, "pyvenv.cfg")):
        raise Trouble(f"--venv {directory} is not empty and no virtual environment; name another directory", 2)
    plain = dict(os.environ, PYTHONNOUSERSITE="1")
    log = os.path.join(work, "environment")
    if have["python"] not in (None, version) or not os.path.exists(python):
        say(f"making a virtual environment in {directory}")
        ended = finish(start([sys.executable, "-m", "venv", "--clear", directory], plain, log), 300)
        if ended.code:
            raise Trouble("no virtual environment could be made:\n  " + "\n  ".join(tail(log))
                          + "\n(Debian and Ubuntu have venv in the package python3-venv)")
        have = {"python": version, "packages": []}
    wanted = sorted(set(have["packages"]) | set(packages)) if not unpinned else packages
    say(f"installing {', '.join(wanted)}")
    # wheels only: building SciPy for an hour is not what somebody wants who asked for a comparison; there is none of
    # pyspark, which has nothing to build
    only = ["--only-binary", ":all:", "--no-binary", "pyspark"]
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q", *only, *wanted]
    ended = finish(start(command, plain, log), 1800)
    if ended.code:
        raise Trouble("pip could not install the peers:\n  " + "\n  ".join(tail(log))
                      + f"\nIf no index was reached: connect, or set PIP_INDEX_URL or PIP_FIND_LINKS. If there is no such"
                        f" version for Python {version}:\ntake another Python, or --unpinned for whatever versions there"
                        f" are. The environment is {directory}")
    with open(marker, "w", encoding="utf-8") as f:
        json.dump({"python": version, "packages": wanted}, f)
    return python


def peer_env(cores, work):
    """The environment of a peer's process: so many threads of BLAS, and nothing that ties BLAS to an old kernel."""
    env = dict(os.environ)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONPATH"):
        env.pop(name, None)
    for name in ("OPENBLAS", "OMP", "MKL", "VECLIB_MAXIMUM", "BLIS"):
        env[f"{name}_NUM_THREADS"] = str(cores)
    env.update(PYTHONNOUSERSITE="1", PYTHONWARNINGS="ignore", MPLCONFIGDIR=work, TMPDIR=work)
    return env


def our_env():
    """svdjob is told everything by its job file and flags; what the user's environment says must not interfere."""
    return {k: v for k, v in os.environ.items() if k not in ("SVDJOB_CACHE", "SVDJOB_FARM_KEY", "RUST_LOG")}


# ---------------------------------------------------------------------------------------------------- the comparison

class Comparison:
    def __init__(self, args, work):
        self.args, self.work, self.rows, self.number = args, work, [], 0
        self.python = None
        self.matrix = os.path.join(work, "matrix")
        self.reference = None
        self.wrong, self.hints = [], {}

    # -- tasks in the environment

    def task(self, what, timeout=None, cores=None, **about):
        """Runs one task of the second half of this file in a fresh process; gives its answer, or a string: why not."""
        self.number += 1
        name = os.path.join(self.work, f"task{self.number}")
        about.update(what=what, answer=name + ".answer", matrix=self.matrix, cores=self.args.cores, work=self.work)
        with open(name + ".json", "w", encoding="utf-8") as f:
            json.dump(about, f)
        timeout = timeout or self.args.timeout
        command = [self.python, os.path.abspath(__file__), "--worker", name + ".json"]
        ended = finish(start(command, peer_env(cores or self.args.cores, self.work), name), timeout)
        if ended.code or not os.path.exists(about["answer"]):
            return why(ended, name, timeout)
        with open(about["answer"], encoding="utf-8") as f:
            return json.load(f)

    def need(self, what, **about):
        answer = self.task(what, timeout=max(3600, self.args.timeout), **about)
        if isinstance(answer, str):
            raise Trouble(f"{what}: {answer}")
        return answer

    # -- the matrix

    def source(self):
        """Where the matrix is: its file, the fields of a triple, and what to write into our job file."""
        args = self.args
        fields = [args.rows, args.columns, args.values]
        movielens = ["userId", "movieId", "rating"]
        if args.matrix in ("ml25m", "netflix"):
            if args.csv:
                return args.csv, fields if any(fields) else movielens
            path = os.path.join(self.work, args.matrix + ".csv")
            say(f"svdjob synth {args.matrix}")
            log = os.path.join(self.work, "synth")
            command = [args.svdjob, "synth", args.matrix, "-o", path, "--threads", str(args.cores), "--quiet"]
            ended = finish(start(command, our_env(), log), max(3600, args.timeout))
            if ended.code:
                raise Trouble("svdjob synth: " + why(ended, log, args.timeout))
            return path, movielens
        if args.matrix == "films":
            return os.path.join(PROJECT, "examples", "films", "ratings.csv"), movielens
        if args.matrix in ("ml-1m", "20news"):
            if not args.data:
                raise Trouble(f"--matrix {args.matrix} is read from a directory of yours: --data DIR", 2)
            names = {"ml-1m": ["ratings.csv", "ratings.dat"], "20news": ["20news_counts.npz"]}[args.matrix]
            tried = [os.path.join(args.data, *below, n) for below in ([args.matrix], []) for n in names]
            for path in tried:
                if os.path.exists(path):
                    return path, fields
            raise Trouble("found none of " + ", ".join(tried), 2)
        if args.matrix.endswith((".csv", ".tsv", ".txt", ".dat", ".gz", ".npz")):
            if not os.path.exists(args.matrix):
                raise Trouble(f"there is no {args.matrix}", 2)
            return args.matrix, fields
        raise Trouble(f"--matrix {args.matrix}: neither a name that this script knows nor a .csv or .npz", 2)

    def prepare(self):
        path, fields = self.source()
        path = os.path.abspath(path)
        os.makedirs(self.matrix, exist_ok=True)
        say(f"reading {os.path.basename(path)}")
        answer = self.need("prepare", path=path, fields=fields, duplicates=self.args.duplicates,
                           precision=self.args.precision, spark=self.args.spark)
        self.about = answer["about"]
        self.ours_reads = answer["triples"]  # the file that svdjob reads, and its fields
        return answer

    # -- references and measurements

    def find_reference(self):
        args, about = self.args, self.about
        if args.reference == "none" or args.reference == "auto" and about["entries"] > SMALL:
            return
        if args.reference in ("auto", "compute"):
            say("reference singular values, in f64")
            answer = self.task("reference", rank=args.rank, timeout=max(3600, args.timeout)
                               if args.reference == "compute" else None)
        else:
            answer = self.task("read_reference", path=os.path.abspath(args.reference))
        if isinstance(answer, str):
            say(f"  no reference singular values: {answer}")
        else:
            self.reference = answer["sigma"]

    def measure(self, row, factors, ours=False):
        answer = self.task("measure", timeout=max(3600, self.args.timeout), factors=factors, ours=ours,
                           reference=self.reference)
        if isinstance(answer, str):
            row["failed"] = f"could not be measured: {answer}"
        else:
            row.update(answer)

    def add(self, row):
        self.rows.append(row)
        if "failed" in row:
            say(f"  {row['failed']}")
        return row

    # -- peers

    def peer(self, group, method, task, **about):
        say(method)
        row = {"group": group, "method": method, "precision": about["precision"]}
        factors = os.path.join(self.work, "factors")
        walls, peaks = [], []
        for _ in range(self.args.repeat):
            shutil.rmtree(factors, ignore_errors=True)
            os.makedirs(factors)
            answer = self.task(task, factors=factors, rank=self.args.rank, **about)
            if isinstance(answer, str):
                row["failed"] = answer
                return self.add(row)
            walls.append(answer.pop("wall"))
            peaks.append(answer.pop("peak"))
            row.update(answer)
        row.update(wall=statistics.median(walls), walls=walls, peak=max(peaks))
        self.measure(row, factors)
        return self.add(row)

    def peers(self):
        args = self.args
        if "sklearn" in args.peers:
            for n_iter in range(1, 8) if args.plot else (4, 7):
                self.peer("scikit-learn", f"scikit-learn randomized_svd, n_iter {n_iter}", "sklearn", n_iter=n_iter,
                          precision=args.precision)
        if "scipy" in args.peers:
            self.peer("SciPy ARPACK", "SciPy svds, ARPACK, tol 0", "scipy", precision=args.precision)
        if "dask" in args.peers:
            # a worker's BLAS has one thread, as Dask sets it: its workers' threads are the parallelism
            self.peer("Dask", "Dask svd_compressed, QR, n_power_iter 4, 2 processes", "dask", precision=args.precision,
                      cores=1, threads=max(1, args.cores // 2))
        if args.spark:
            if shutil.which("java"):
                self.peer("Spark", f"Spark computeSVD, local[{args.cores}]", "spark", precision="f64",
                          memory=args.spark_memory)
            else:
                self.add({"group": "Spark", "method": "Spark computeSVD", "precision": "f64", "failed": "no java"})

    # -- ours

    def job(self, lines, directory, cache):
        path, (rows, columns, values), duplicates = self.ours_reads
        quoted = lambda x: json.dumps(x, ensure_ascii=False)  # a JSON string is a TOML string, too
        text = ["[matrix]", f"path = {quoted(path)}", f"rows = {quoted(rows)}", f"columns = {quoted(columns)}"]
        if values is not None:
            text.append(f"values = {quoted(values)}")
        text += [f"duplicates = {quoted(duplicates)}", "", "[factor]", f"rank = {self.args.rank}",
                 f"precision = {quoted(self.args.precision)}", "seed = 0", *lines, "",
                 "[output]", f"directory = {quoted(directory)}", "",
                 "[resources]", f"cores = {self.args.cores}", f"cache = {quoted(cache)}"]
        if self.args.memory:
            text.append(f"memory = {quoted(self.args.memory)}")
        name = os.path.join(self.work, "factor.toml")
        with open(name, "w", encoding="utf-8") as f:
            f.write("\n".join(text) + "\n")
        return name

    def our_jobs(self):
        if self.args.job_extra:
            return [(extra, extra.split("\n")) for extra in self.args.job_extra]
        tolerances = self.args.tolerances
        if self.args.plot:
            tolerances = sorted({*tolerances, *self.args.plot_tolerances}, key=float, reverse=True)
        return [(f"tolerance = {t}", [f"tolerance = {t}"]) for t in tolerances]

    def our_run(self, job, flags):
        log = os.path.join(self.work, "svdjob")
        ended = finish(start([self.args.svdjob, "run", job, "--quiet", "--json", *flags], our_env(), log),
                       self.args.timeout)
        report = {}
        try:
            with open(log + ".out", encoding="utf-8") as f:
                report = json.load(f)
        except (OSError, ValueError):
            pass
        # 6: a tolerance was not reached and the factors were written; they are measured like all others
        if ended.code in (0, 6) and not ended.timed_out:
            return ended, report, None
        text = why(ended, log, self.args.timeout)
        for problem in report.get("problems", []):
            text = f"exit {ended.code}: {problem.get('message')}"
            if "tolerance" in text and not self.args.job_extra:
                self.hints["older"] = ("This svdjob is older than the key `tolerance`: build a newer one (cargo build "
                                       "--release), or\nput a line that it knows in its place: "
                                       "--job-extra 'power_iterations = 4'")
        return ended, report, text

    def ours(self, group, label, lines, flags, prepared, others=lambda: 0):
        """One row of svdjob. Unless `prepared`, a first run reads the input and fills the cache; it is recorded apart."""
        method = f"{group}, {label}"
        say(method)
        row = {"group": group, "method": method, "precision": self.args.precision}
        directory = os.path.join(self.work, "ours")
        shutil.rmtree(directory, ignore_errors=True)
        job = self.job(lines, directory, os.path.join(self.work, "cache"))
        if not prepared:
            ended, report, failed = self.our_run(job, flags)
            if failed:
                row["failed"] = failed
                return self.add(row)
            row.update(first_wall=ended.wall, first_peak=ended.peak)
        walls, peaks = [], []
        for _ in range(self.args.repeat):
            ended, report, failed = self.our_run(job, flags)
            if failed:
                row["failed"] = failed
                return self.add(row)
            walls.append(ended.wall)
            peaks.append(ended.peak)
        row.update(wall=statistics.median(walls), walls=walls, peak=max(peaks) + others(), reads=report.get("passes"),
                   phases=report.get("phases"), input_from_cache=report.get("ingest_reused"),
                   farm=bool(report.get("farm")))
        if ended.code == 6:
            row["note"] = "the tolerance was not reached (exit 6)"
        if row["input_from_cache"] is False:
            row["note"] = "the input was read again, although a run before had prepared it"
        self.measure(row, directory, ours=True)
        return self.add(row)

    def embedded(self):
        prepared = False
        for label, lines in self.our_jobs():
            row = self.ours("svdjob", label, lines, ["--embedded"], prepared)
            prepared = prepared or "failed" not in row

    def farm(self):
        """Two nodes on this machine's loopback interface, with a key of their own; nothing leaves it."""
        args, nodes = self.args, []
        key = os.path.join(self.work, "farm.pem")
        env = our_env()
        each = max(1, args.cores // 2)
        label = args.job_extra[0] if args.job_extra else f"tolerance = {args.tolerances[0]}"
        lines = label.split("\n")
        row = {"group": "svdjob on 2 svdnode", "method": f"svdjob on 2 svdnode of {each}, {label}",
               "precision": args.precision}
        log = os.path.join(self.work, "farm")
        ended = finish(start([args.svdjob, "farm", "init", "--farm-key", key], env, log), 60)
        if ended.code:
            row["failed"] = "svdjob farm init: " + why(ended, log, 60)
            return self.add(row)
        try:
            for n in (1, 2):
                port, log = free_port(), os.path.join(self.work, f"svdnode{n}")
                command = [args.svdnode, "--no-advertise", "--listen", f"127.0.0.1:{port}", "--cores", str(each),
                           "--memory", "25 %", "--farm-key", key, "--cache", log + ".cache", "--color", "never"]
                node = start(command, env, log)
                node.port, node.log = port, log
                nodes.append(node)
            for node in nodes:
                if not listening(node):
                    row["failed"] = "svdnode: " + (tail(node.log) or ["did not come up"])[-1]
                    return self.add(row)
            flags = ["--no-discover", "--farm-key", key, "--window", "10s", "--at-least", "2", "--otherwise", "fail"]
            for node in nodes:
                flags += ["--node", f"127.0.0.1:{node.port}"]
            # the nodes' memory counts, too; they are asked while they are still there
            row = self.ours(f"svdjob on 2 svdnode of {each}", label, lines, flags, False,
                            others=lambda: sum(high_water(n.pid) or 0 for n in nodes))
            row["group"] = "svdjob on 2 svdnode"
            return row
        finally:
            end(list(LIVE))  # after Ctrl-C svdjob, too: nodes go at once only when nobody has work for them

    # -- what came out

    def judge(self):
        """Our claims against what was measured; every disagreement is a line in `wrong`."""
        for row in self.rows:
            if not row["group"].startswith("svdjob"):
                continue
            if "failed" in row:
                self.wrong.append(f"FAILED: {row['method']}: {row['failed']}")
            for text in row.get("claims_wrong", []):
                self.wrong.append(f"DISAGREES: {row['method']}: {text}")

    def table(self):
        known = any(r.get("sigma_error") is not None for r in self.rows)
        head = ["method", "type", "reads", "wall s", "peak MiB", "max res.", "median", "sigma err", "U orth", "V orth"]
        lines = []
        for r in self.rows:
            if "failed" in r:
                lines.append((r["method"], r["failed"]))
                continue
            small = lambda name: "-" if r.get(name) is None else f"{r[name]:.1e}"
            lines.append([r["method"], r["precision"], str(r.get("reads") or "-"), f"{r['wall']:.2f}",
                          f"{r['peak'] / MIB:.0f}", small("residual_max"), small("residual_median"),
                          small("sigma_error"), small("orthogonality_u"), small("orthogonality_v")])
        full = [x for x in lines if isinstance(x, list)]
        width = [max([len(head[i])] + [len(x[i]) for x in full]) for i in range(len(head))]
        width[0] = max(width[0], *(len(x[0]) for x in lines), 0) if lines else width[0]
        row_of = lambda x: "  ".join([x[0].ljust(width[0])] + [c.rjust(w) for c, w in zip(x[1:], width[1:])])
        print(row_of(head))
        for x in lines:
            print(row_of(x) if isinstance(x, list) else f"{x[0].ljust(width[0])}  failed: {x[1]}")
        print()
        if not known:
            print("sigma err: no reference; --reference compute makes one (ARPACK in f64, which takes a while)")
        for r in self.rows:
            if "first_wall" in r and "farm" in r:
                way = "sending blocks to the nodes" if r["farm"] else "reading the input"
                print(f"{r['method']}: {r['first_wall']:.2f} s the first time, {way} included"
                      + ("" if r["farm"] else f" ({r['first_peak'] / MIB:.0f} MiB)"))
            if "claim_ratio" in r:
                low, high = r["claim_ratio"]
                print(f"{r['method']}: claimed / measured residual {low:.4f} to {high:.4f}"
                      f" over {r['claims_compared']} of {len(r['residuals'])} triplets"
                      f" (the rest is rounding) [{r['claims_from']}]")
        for r in self.rows:
            if "note" in r:
                print(f"{r['method']}: {r['note']}")

    def results(self, machine):
        return {"format": 1, "matrix": self.about, "rank": self.args.rank, "cores": self.args.cores,
                "repeat": self.args.repeat, "machine": machine, "reference_sigma": self.reference, "rows": self.rows,
                "wrong": self.wrong}


def free_port():
    """A UDP port of loopback that nobody has at the moment."""
    import socket
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listening(node):
    until = time.monotonic() + 10
    while time.monotonic() < until and node.poll() is None:
        if any("listening" in line for line in tail(node.log)):
            return True
        time.sleep(0.05)
    return False


def high_water(pid):
    """The most memory that a living process has had, from /proc; None where there is no /proc."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def machine():
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            cpu = next((line.partition(":")[2].strip() for line in f if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {"cpu": cpu, "system": f"{platform.system()} {platform.machine()}",
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)}


def allowed():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def program(name):
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(PROJECT, "target")
    built = os.path.join(target, "release", name)
    return built if os.path.exists(built) else shutil.which(name)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--matrix", default="films", metavar="WHAT",
                   help="films, ml-1m, 20news, ml25m, netflix, FILE.csv or FILE.npz (default films)")
    p.add_argument("--csv", metavar="FILE", help="for ml25m and netflix: this file, not one of `svdjob synth`")
    p.add_argument("--data", metavar="DIR", help="where ml-1m (ratings.csv or ratings.dat) and 20news "
                   "(20news_counts.npz) are, which this project does not bring")
    p.add_argument("--rows", metavar="FIELD", help="of FILE.csv: a header name, or a number from 1 (default 1)")
    p.add_argument("--columns", metavar="FIELD", help="(default 2)")
    p.add_argument("--values", metavar="FIELD", help="(default 3; none: every line counts 1)")
    p.add_argument("--duplicates", choices=["error", "sum"], default="error")
    p.add_argument("--rank", type=int, default=100, metavar="K")
    p.add_argument("--precision", choices=["f32", "f64"], default="f32", help="of all but Spark, which has f64 only")
    p.add_argument("--cores", type=int, default=allowed(), metavar="N", help="threads of each (default: all allowed)")
    p.add_argument("--peers", default="sklearn,scipy,dask", metavar="LIST", help="(default sklearn,scipy,dask; none)")
    p.add_argument("--spark", action="store_true", help="Spark too: needs java, and pip brings 400 MB")
    p.add_argument("--spark-memory", default="8g", metavar="SIZE", help="of its JVM (default 8g)")
    p.add_argument("--tolerances", default="1e-2 1e-5", metavar="LIST", help='of svdjob (default "1e-2 1e-5")')
    p.add_argument("--job-extra", action="append", metavar="LINE",
                   help="a line for [factor] of the job file in place of the tolerance, for a svdjob without that key: "
                        "'power_iterations = 7'; may be repeated for more rows")
    p.add_argument("--memory", metavar="SIZE", help="budget of svdjob (default: its own)")
    p.add_argument("--farm", action="store_true", help="svdjob on two svdnode on loopback, too")
    p.add_argument("--reference", default="auto", metavar="FILE",
                   help="singular values to compare with: .npy or text; compute: by ARPACK in f64; auto (default): "
                        f"computed up to {SMALL:,} entries; none")
    p.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each; the median is told (default 1)")
    p.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="for each run (default 900)")
    p.add_argument("--plot", action="store_true", help="a picture of residual against reads; runs scikit-learn with "
                   "n_iter 1 to 7 and svdjob with --plot-tolerances for it")
    p.add_argument("--plot-tolerances", default="1e-1 3e-2 1e-2 1e-3 1e-4 1e-5", metavar="LIST")
    p.add_argument("--output", "-o", default=".", metavar="DIR", help="for results.json and reads.png (default: here)")
    p.add_argument("--work", metavar="DIR", help="make the directory for all temporary files in here; ml25m needs 2 GB, "
                   "netflix 8 GB (default: the system's place)")
    p.add_argument("--keep", action="store_true", help="do not remove the temporary files, and say where they are")
    p.add_argument("--venv", default=os.path.join(cache_directory(), "svdjob-peers"), metavar="DIR",
                   help="the virtual environment for the peers (default: %(default)s)")
    p.add_argument("--unpinned", action="store_true", help="install the newest versions, not the pinned ones")
    p.add_argument("--svdjob", default=program("svdjob"), metavar="FILE", help="(default: that of target/release)")
    p.add_argument("--svdnode", default=program("svdnode"), metavar="FILE")
    args = p.parse_args()
    if args.rank < 1 or args.cores < 1 or args.repeat < 1 or args.timeout <= 0:
        p.error("--rank, --cores, --repeat and --timeout must be positive")
    args.peers = [x for x in args.peers.split(",") if x and x != "none"]
    for x in args.peers:
        if x not in ("sklearn", "scipy", "dask"):
            p.error(f"--peers: there is no {x}; there are sklearn, scipy and dask")
    args.tolerances = args.tolerances.replace(",", " ").split()
    args.plot_tolerances = args.plot_tolerances.replace(",", " ").split()
    for t in args.tolerances + args.plot_tolerances:
        try:
            float(t)
        except ValueError:
            p.error(f"{t} is no tolerance")
    for name in ("svdjob",) + (("svdnode",) if args.farm else ()):
        if not getattr(args, name):
            p.error(f"found no {name}: build it (cargo build --release), or say --{name} FILE")
        setattr(args, name, os.path.abspath(getattr(args, name)))
    if not os.path.isdir(args.output):
        p.error(f"--output {args.output}: no such directory")
    return args


def interrupted(number, frame):
    raise KeyboardInterrupt


def main():
    args = arguments()
    if sys.version_info < (3, 11):
        raise Trouble("the peers' versions need Python 3.11 or newer, this is " + platform.python_version(), 3)
    signal.signal(signal.SIGTERM, interrupted)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, interrupted)
    if args.work:
        os.makedirs(args.work, exist_ok=True)
    work = tempfile.mkdtemp(prefix="svdjob-peers-", dir=args.work)
    try:
        return compare(args, work)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # ending everything takes seconds at most: let it
        end(list(LIVE))
        if args.keep:
            say(f"temporary files are in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def compare(args, work):
    packages = PINNED + (PINNED_PLOT if args.plot else []) + (PINNED_SPARK if args.spark else [])
    it = Comparison(args, work)
    it.python = environment(os.path.abspath(args.venv), packages, work, args.unpinned)
    prepared = it.prepare()
    about, here = it.about, machine()
    version = subprocess.run([args.svdjob, "--version"], capture_output=True, text=True, env=our_env()).stdout.strip()
    here.update(svdjob=version, **prepared["versions"])
    if args.rank >= min(about["rows"], about["columns"]):
        raise Trouble(f"--rank {args.rank} is not below the shorter side of {about['rows']} x {about['columns']}", 2)
    it.find_reference()
    it.peers()
    it.embedded()
    if args.farm:
        it.farm()
    it.judge()

    dropped = [x for x in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if x in os.environ]
    print(f"{args.matrix}: {about['rows']:,} x {about['columns']:,}, {about['entries']:,} entries, rank {args.rank}")
    print(f"{here['cpu']}, {here['memory_gib']:g} GiB; {args.cores} threads for each (BLAS and svdjob alike; SciPy's sparse"
          f" products use one)")
    print(f"{version}; " + ", ".join(f"{k} {v}" for k, v in prepared["versions"].items() if k != "BLAS"))
    print("BLAS " + prepared["versions"]["BLAS"]
          + (f"; {' and '.join(dropped)} of the environment not passed on" if dropped else ""))
    print()
    it.table()
    for text in [*it.wrong, *it.hints.values()]:
        print(text)
    path = os.path.join(args.output, "results.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(it.results(here), f, indent=1)
    written = [path]
    if args.plot:
        picture = os.path.join(args.output, "reads.png")
        answer = it.task("plot", results=os.path.abspath(path), picture=os.path.abspath(picture), name=args.matrix)
        if isinstance(answer, str):
            say(f"no picture: {answer}")
        else:
            written.append(picture)
    print("written: " + ", ".join(written))
    return 1 if it.wrong else 0


# ---------------------------------------------------------------------------------------- in the environment: matrix

def load(task, precision):
    import scipy.sparse as sp
    return sp.load_npz(os.path.join(task["matrix"], f"{precision}.npz"))


def lines_of(path):
    """An opened text file whose fields are parted by one character; MovieLens's :: becomes a comma."""
    import gzip
    f = gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8")
    first = f.readline()
    f.seek(0)
    if "::" in first:
        return (line.replace("::", ",") for line in f), first.replace("::", ",")
    return f, first


def number_of(field, header, names_are, default):
    """The place of a field, from 0, that is given by name or by number from 1."""
    if field is None:
        return default
    if field.isdigit() and int(field) >= 1:
        return int(field) - 1
    if names_are and field in header:
        return header.index(field)
    raise SystemExit(f"there is no field {field}; there are {', '.join(header)}")


def coded(labels):
    """Distinct labels in order, and the place of each label among them."""
    import numpy as np
    if labels.dtype.kind == "i" and labels.min() >= 0 and labels.max() < 100_000_000:
        there = np.zeros(labels.max() + 1, bool)  # sorting a hundred million numbers would take much longer
        there[labels] = True
        names = np.flatnonzero(there)
        place = np.empty(len(there), np.int32)
        place[names] = np.arange(len(names), dtype=np.int32)
        return names, place[labels]
    names, place = np.unique(labels, return_inverse=True)
    return names, place.astype(np.int32)


def read_text(path, fields, duplicates):
    """A file of triples as a sparse matrix, its labels, and its fields as svdjob is to be told them."""
    import warnings
    import numpy as np
    import scipy.sparse as sp
    stream, first = lines_of(path)
    delimiter = max(",\t;|", key=first.count)
    if delimiter not in first:
        delimiter = None  # blanks
    cells = next(csv.reader([first.rstrip("\r\n")], delimiter=delimiter)) if delimiter else first.split()
    try:
        [float(x) for x in cells[:3]]
        header = False
    except ValueError:
        header = True
    at = [number_of(fields[0], cells, header, 0), number_of(fields[1], cells, header, 1),
          None if fields[2] == "none" else number_of(fields[2], cells, header, 2)]
    use = [x for x in at if x is not None]
    if max(use) >= len(cells):
        raise SystemExit(f"the lines have {len(cells)} fields, so there is no field {max(use) + 1}")
    if header:
        next(stream)
    rows, columns, values = [], [], []
    try:
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about no lines being left
                part = np.loadtxt(stream, delimiter=delimiter, usecols=use, max_rows=4_000_000, ndmin=2, comments=None,
                                  quotechar='"')
            if not len(part):
                break
            for kept, c in ((rows, 0), (columns, 1)):
                whole = part[:, c].astype(np.int64)
                if not (whole == part[:, c]).all():
                    raise ValueError("a label is no whole number")
                kept.append(whole.astype(np.int32) if abs(whole).max() < 2**31 else whole)  # half the memory
            values.append(part[:, 2] if len(use) == 3 else np.ones(len(part)))
        rows, columns, values = (np.concatenate(x) for x in (rows, columns, values))
    except ValueError:  # labels are words: slower
        stream, _ = lines_of(path)
        if header:
            next(stream)
        rows, columns, values = [], [], []
        for line in csv.reader(stream, delimiter=delimiter) if delimiter else (x.split() for x in stream):
            if line:
                rows.append(line[at[0]])
                columns.append(line[at[1]])
                values.append(1.0 if at[2] is None else float(line[at[2]]))
        rows, columns, values = np.array(rows), np.array(columns), np.array(values)
    row_names, rows = coded(rows)
    column_names, columns = coded(columns)
    count = len(values)
    a = sp.csr_matrix((values, (rows, columns)), shape=(len(row_names), len(column_names)))
    a.sum_duplicates()
    if duplicates == "error" and a.nnz != count:
        raise SystemExit(f"{count - a.nnz} pairs stand more than once; --duplicates sum adds them up")
    told = [cells[x] if header else x + 1 if x is not None else None for x in at[:2]]
    told.append(None if at[2] is None else cells[at[2]] if header else at[2] + 1)
    return a, [str(x) for x in row_names], [str(x) for x in column_names], [path, told, duplicates]


def read_npz(path, directory):
    """A matrix of scipy.sparse.save_npz, without its empty rows and columns, and written as triples for svdjob."""
    import numpy as np
    import scipy.sparse as sp
    a = sp.csr_matrix(sp.load_npz(path)).astype(np.float64)
    a.sum_duplicates()
    a.eliminate_zeros()
    # a file of triples cannot say that there is an empty row, and no singular vector is the richer for one
    rows = np.flatnonzero(np.diff(a.indptr))
    columns = np.flatnonzero(np.bincount(a.indices, minlength=a.shape[1]))
    a = a[rows][:, columns].tocsr()
    a.sort_indices()
    triples = os.path.join(directory, "triples.csv")
    with open(triples, "w", encoding="utf-8") as f:
        f.write("row,column,value\n")
        for i in range(a.shape[0]):
            cut = slice(a.indptr[i], a.indptr[i + 1])
            f.write("".join(f"{rows[i]},{c},{v!r}\n"
                            for c, v in zip(columns[a.indices[cut]].tolist(), a.data[cut].tolist())))
    names = [[str(x) for x in y] for y in (rows, columns)]
    return a, *names, [triples, ["row", "column", "value"], "error"]


def do_prepare(task):
    import numpy as np
    import scipy
    import scipy.sparse as sp
    import sklearn
    import dask
    path, out = task["path"], task["matrix"]
    if path.endswith(".npz"):
        a, rows, columns, triples = read_npz(path, out)
    else:
        a, rows, columns, triples = read_text(path, task["fields"], task["duplicates"])
    if max(a.shape) < 2**31 and a.nnz < 2**31:  # 4-byte indices, as SciPy chooses by itself
        a.indices, a.indptr = a.indices.astype(np.int32), a.indptr.astype(np.int32)
    for name, labels in (("rows.txt", rows), ("columns.txt", columns)):
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            f.write("\n".join(labels))
    about = {"rows": a.shape[0], "columns": a.shape[1], "entries": int(a.nnz),
             "frobenius_squared": float((a.data ** 2).sum())}
    sp.save_npz(os.path.join(out, "f64.npz"), a, compressed=False)
    if task["precision"] == "f32":
        sp.save_npz(os.path.join(out, "f32.npz"), a.astype(np.float32), compressed=False)
    # Dask and Spark split the longer side in parts of about as many entries each; every process loads only its own
    tall = a if a.shape[0] >= a.shape[1] else a.T.tocsr()
    parts = max(4, 2 * task["cores"])
    cuts = np.searchsorted(tall.indptr, np.linspace(0, a.nnz, parts + 1))
    cuts[0], cuts[-1] = 0, tall.shape[0]
    cuts = np.unique(cuts)
    kinds = {task["precision"]} | ({"f64"} if task["spark"] else set())
    for kind in kinds:
        for i, (x, y) in enumerate(zip(cuts[:-1], cuts[1:])):
            sp.save_npz(os.path.join(out, f"part{i}-{kind}.npz"), tall[x:y].astype(kind.replace("f", "float")),
                        compressed=False)
    with open(os.path.join(out, "parts.json"), "w", encoding="utf-8") as f:
        json.dump({"cuts": cuts.tolist(), "columns": tall.shape[1], "transposed": tall is not a}, f)
    from threadpoolctl import threadpool_info
    blas = [f"{x['internal_api']} {x.get('version')} {x.get('architecture')}" for x in threadpool_info()
            if x["user_api"] == "blas"]
    versions = {"Python": platform.python_version(), "NumPy": np.__version__, "SciPy": scipy.__version__,
                "scikit-learn": sklearn.__version__, "Dask": dask.__version__, "BLAS": " and ".join(sorted(set(blas)))}
    return {"about": about, "triples": triples, "versions": versions}


# ----------------------------------------------------------------------------------------- in the environment: peers

def save(task, u, s, vt):
    import numpy as np
    for name, x in (("U", u), ("S", s), ("Vt", vt)):
        np.save(os.path.join(task["factors"], name + ".npy"), np.asarray(x))


def own_peak():
    import resource
    return maxrss(resource.getrusage(resource.RUSAGE_SELF))


def do_sklearn(task):
    from sklearn.utils.extmath import randomized_svd
    a = load(task, task["precision"])
    began = time.perf_counter()
    u, s, vt = randomized_svd(a, n_components=task["rank"], n_iter=task["n_iter"], random_state=0)
    wall, peak = time.perf_counter() - began, own_peak()
    save(task, u, s, vt)
    return {"wall": wall, "peak": peak, "reads": 2 * task["n_iter"] + 2}


def arpack(a, k, vectors):
    """svds of SciPy, and how often it multiplied with A or its transpose."""
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, svds
    count = [0]
    at = a.T

    def product(x, m):
        count[0] += 1
        return m @ x

    op = LinearOperator(a.shape, dtype=a.dtype, matvec=lambda x: product(x, a), rmatvec=lambda x: product(x, at),
                        matmat=lambda x: product(x, a), rmatmat=lambda x: product(x, at))
    v0 = np.random.default_rng(0).standard_normal(min(a.shape)).astype(a.dtype)
    got = svds(op, k=k, v0=v0, return_singular_vectors=vectors)
    return got, count[0]


def do_scipy(task):
    a = load(task, task["precision"])
    began = time.perf_counter()
    (u, s, vt), reads = arpack(a, task["rank"], True)
    wall, peak = time.perf_counter() - began, own_peak()
    save(task, u[:, ::-1], s[::-1], vt[::-1])
    return {"wall": wall, "peak": peak, "reads": reads}


def parts_of(task):
    with open(os.path.join(task["matrix"], "parts.json"), encoding="utf-8") as f:
        return json.load(f)


def part_path(task, i):
    return os.path.join(task["matrix"], f"part{i}-{task['precision']}.npz")


def do_dask(task):
    import dask
    import dask.array as da
    import numpy as np
    import scipy.sparse as sp
    from distributed import Client, LocalCluster, wait
    parts = parts_of(task)
    cuts, dtype = parts["cuts"], np.dtype(task["precision"].replace("f", "float"))
    up = time.perf_counter()
    # no warnings about a worker that was busy computing for 3 s, which is what it is there for
    with dask.config.set({"distributed.admin.tick.limit": "1h"}), \
            LocalCluster(n_workers=2, threads_per_worker=task["threads"], processes=True, host="127.0.0.1",
                         dashboard_address=None, local_directory=task["work"]) as cluster, Client(cluster) as client:
        read = dask.delayed(sp.load_npz)
        blocks = [da.from_delayed(read(part_path(task, i)), shape=(y - x, parts["columns"]), dtype=dtype,
                                  meta=sp.csr_matrix((0, 0), dtype=dtype))
                  for i, (x, y) in enumerate(zip(cuts[:-1], cuts[1:]))]
        a = da.concatenate(blocks, axis=0).persist()
        wait(a)  # the parts are in the workers' memory now: reading is not counted
        began = time.perf_counter()
        u, s, vt = dask.compute(*da.linalg.svd_compressed(a, task["rank"], iterator="QR", n_power_iter=4, seed=0))
        wall = time.perf_counter() - began
        peak = own_peak() + sum(client.run(own_peak).values())
    save(task, *((vt.T, s, u.T) if parts["transposed"] else (u, s, vt)))
    return {"wall": wall, "peak": peak, "reads": 10, "setup": began - up}


def do_spark(task):
    import numpy as np
    import scipy.sparse as sp
    os.environ.update(PYSPARK_PYTHON=sys.executable, PYSPARK_DRIVER_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    from pyspark.sql import SparkSession
    from pyspark.mllib.linalg import SparseVector
    from pyspark.mllib.linalg.distributed import IndexedRow, IndexedRowMatrix
    parts = parts_of(task)
    cuts, n = parts["cuts"], parts["columns"]
    spark = (SparkSession.builder.master(f"local[{task['cores']}]").appName("svdjob-peers")
             .config("spark.driver.memory", task["memory"]).config("spark.ui.enabled", "false")
             .config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
             .config("spark.driver.maxResultSize", "0").config("spark.local.dir", task["work"]).getOrCreate())
    spark.sparkContext.setLogLevel("ERROR")

    def rows_of(i):
        block = sp.load_npz(part_path(task, i))
        for r in range(block.shape[0]):
            cut = slice(block.indptr[r], block.indptr[r + 1])
            yield IndexedRow(cuts[i] + r, SparseVector(n, block.indices[cut], block.data[cut]))

    up = time.perf_counter()
    rows = spark.sparkContext.parallelize(range(len(cuts) - 1), len(cuts) - 1).flatMap(rows_of)
    matrix = IndexedRowMatrix(rows)
    # the JVM keeps the rows before the clock starts, else every pass would fetch them from Python again
    matrix._java_matrix_wrapper._java_model.rows().cache().count()
    began = time.perf_counter()
    svd = matrix.computeSVD(task["rank"], computeU=True)
    s, v = svd.s.toArray(), svd.V.toArray()
    u = np.zeros((cuts[-1], len(s)))
    for row in svd.U.rows.collect():
        u[row.index] = row.vector.toArray()
    wall = time.perf_counter() - began
    peak = own_peak() + sum(high_water(p) or 0 for p in descendants(os.getpid()))
    save(task, *((v, s, u.T) if parts["transposed"] else (u, s, v.T)))
    spark.stop()
    return {"wall": wall, "peak": peak, "reads": None, "setup": began - up}


# ------------------------------------------------------------------------------------- in the environment: yardstick

def do_reference(task):
    import numpy as np
    a = load(task, "f64")
    if min(a.shape) <= 1500 and a.shape[0] * a.shape[1] <= 50_000_000:  # a dense SVD of that is a matter of seconds
        sigma = np.linalg.svd(a.toarray(), compute_uv=False)[:task["rank"]]
    else:
        sigma = np.sort(arpack(a, task["rank"], False)[0])[::-1]
    return {"sigma": sigma.tolist()}


def do_read_reference(task):
    import numpy as np
    path = task["path"]
    sigma = np.load(path) if path.endswith(".npy") else np.loadtxt(path)
    return {"sigma": np.sort(sigma.ravel())[::-1].tolist()}


def ordered(directory, name, matrix, ours_to):
    """Where each row (or column) of the matrix is among our factors, by its label."""
    import numpy as np
    with open(os.path.join(directory, name + ".csv"), newline="", encoding="utf-8") as f:
        lines = csv.reader(f)
        at = next(lines).index("label")
        place = {line[at]: i for i, line in enumerate(lines)}
    with open(os.path.join(matrix, name + ".txt"), encoding="utf-8") as f:
        labels = f.read().split("\n")
    if len(labels) != ours_to or any(x not in place for x in labels):
        strange = next((x for x in labels if x not in place), None)
        raise SystemExit(f"{name}: the matrix has {len(labels)}, the factors have {ours_to}"
                         + (f"; they do not know {strange}" if strange else ""))
    return np.array([place[x] for x in labels])


def claims_of(directory):
    """The residuals that svdjob claims: of the certificate if there is one, else of the manifest."""
    for name, key in (("certificate.json", "residual"), ("manifest.json", "residuals")):
        path = os.path.join(directory, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                return json.load(f)[key], name
    raise SystemExit(f"{directory} has neither certificate nor manifest")


def do_measure(task):
    import numpy as np
    directory = task["factors"]
    u, s, vt = (np.load(os.path.join(directory, x + ".npy")) for x in ("U", "S", "Vt"))
    unit = float(np.finfo(u.dtype).eps) / 2
    s = s.ravel().astype(np.float64)
    if task["ours"]:
        u = u[ordered(directory, "rows", task["matrix"], u.shape[0])]
        vt = vt[:, ordered(directory, "columns", task["matrix"], vt.shape[1])]
    a = load(task, "f64")
    k = len(s)
    if u.shape != (a.shape[0], k) or vt.shape != (k, a.shape[1]):
        raise SystemExit(f"U {u.shape}, S {k}, Vt {vt.shape} are no factors of {a.shape[0]} x {a.shape[1]}")
    at, residuals = a.T, np.empty(k)
    for x in range(0, k, 16):  # so many columns at a time, to need little memory beside the matrix
        y = slice(x, min(k, x + 16))
        left, right = u[:, y].astype(np.float64), vt[y].T.astype(np.float64)
        residuals[y] = np.hypot(np.linalg.norm(a @ right - left * s[y], axis=0),
                                np.linalg.norm(at @ left - right * s[y], axis=0)) / s[y]
    off = []
    for x in (u, vt.T):
        gram = np.zeros((k, k))
        for i in range(0, len(x), 65536):
            piece = x[i:i + 65536].astype(np.float64)
            gram += piece.T @ piece
        off.append(float(np.abs(gram - np.eye(k)).max()))
    answer = {"residual_max": float(residuals.max()), "residual_median": float(np.median(residuals)),
              "residuals": residuals.tolist(), "sigma": s.tolist(), "orthogonality_u": off[0],
              "orthogonality_v": off[1], "triplets": k, "sigma_error": None}
    if task["reference"] is not None:
        true = np.array(task["reference"])
        both = min(k, len(true))
        answer["sigma_error"] = float((np.abs(s[:both] - true[:both]) / true[:both]).max())
    if task["ours"]:
        claimed, where = claims_of(directory)
        answer.update(compare_claims(np.array(claimed, float), residuals, s, unit), claims_from=where)
    return answer


def compare_claims(claimed, residuals, s, unit):
    """A claim must be at most 5 % above what is measured, and below it by no more than rounding.

    Rounding the factors to their type when they are written changes a residual by up to about unit * s_1 / s_i each
    for u and v; rounding inside the method adds a few times that (seven times was seen). So a claim may be off by
    `floor`, whatever its size, and by a thousandth of its size below; nothing else is excused.
    """
    import numpy as np
    if len(claimed) != len(residuals):
        return {"claims_wrong": [f"claims {len(claimed)} residuals of {len(residuals)} triplets"]}
    floor = 16 * unit * s[0] / s
    wrong = []
    for i, (said, found) in enumerate(zip(claimed, residuals)):
        if not found * (1 - 1e-3) - floor[i] <= said <= found * 1.05 + floor[i]:
            wrong.append(f"triplet {i + 1} claims residual {said:.3e}, measured {found:.3e}")
    big = residuals > 20 * floor
    ratio = claimed[big] / residuals[big]
    answer = {"claimed": claimed.tolist(), "claims_compared": int(big.sum()), "claims_wrong": wrong[:5]}
    if len(wrong) > 5:
        answer["claims_wrong"].append(f"and {len(wrong) - 5} more")
    if len(ratio):
        answer["claim_ratio"] = [float(ratio.min()), float(ratio.max())]
    return answer


def do_plot(task):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    with open(task["results"], encoding="utf-8") as f:
        results = json.load(f)
    lines = collections.defaultdict(list)
    for r in results["rows"]:
        if r.get("reads") and r.get("residual_max") and "failed" not in r:
            lines[r["group"]].append((r["reads"], r["residual_max"]))
    if not lines:
        raise SystemExit("no method has both reads and a residual")
    plt.rcParams.update({"font.size": 12, "font.family": "sans-serif", "axes.linewidth": 0.8})
    figure, axes = plt.subplots(figsize=(8, 5), dpi=200)
    style = {"svdjob": ("#b3341f", "o", 2.2), "svdjob on 2 svdnode": ("#b3341f", "D", 0),
             "scikit-learn": ("#35618f", "s", 1.4), "SciPy ARPACK": ("#555555", "^", 1.4),
             "Dask": ("#7a9a3a", "v", 1.4), "Spark": ("#8a6fb0", "P", 1.4)}
    for group, points in lines.items():
        colour, mark, width = style.get(group, ("#888888", "o", 1.2))
        points.sort()
        axes.plot(*zip(*points), color=colour, marker=mark, linewidth=width, markersize=6.5, label=group,
                  markerfacecolor="white" if group == "svdjob on 2 svdnode" else colour,
                  zorder=3 if group.startswith("svdjob") else 2)
    axes.set_yscale("log")
    reads = [x for points in lines.values() for x, _ in points]
    if max(reads) > 40:  # ARPACK reads the matrix hundreds of times
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("reads of A (for peers: products with A or its transpose)")
    axes.set_ylabel(f"largest residual of {results['rank']} triplets")
    m = results["matrix"]
    name = os.path.basename(task["name"])
    axes.set_title(f"{name}: {m['rows']:,} x {m['columns']:,}, {m['entries']:,} entries, rank {results['rank']}",
                   fontsize=12, loc="left")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="best")
    figure.tight_layout()
    figure.savefig(task["picture"])
    return {}


def worker(path):
    with open(path, encoding="utf-8") as f:
        task = json.load(f)
    answer = globals()["do_" + task["what"]](task)
    with open(task["answer"] + ".part", "w", encoding="utf-8") as f:
        json.dump(answer, f)
    os.replace(task["answer"] + ".part", task["answer"])


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        worker(sys.argv[2])
        sys.exit(0)
    try:
        sys.exit(main())
    except Trouble as trouble:
        say(f"error: {trouble}")
        sys.exit(trouble.code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
