#!/usr/bin/env python3
"""Runs the test programs that `cargo test --no-run` built, several at a time: most of them wait for
processes and clocks more than they compute. Reads cargo's JSON messages from standard input; all
arguments go to every program. Prints the output of a program when it has ended; exits 1 when one
failed, after all have run. At the end the table of what each executor has shown is printed: tests
leave lines for it in a folder that is emptied here before."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

# Begun first, so that none of them is alone at the end.
LONG = ["main_job", "exec_slurm", "mirror", "exec_ssm", "failures"]


def programs():
    for line in sys.stdin:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            continue
        if message.get("reason") == "compiler-artifact" and message["profile"]["test"]:
            if message["executable"]:
                yield message["target"]["name"], message["executable"], message["manifest_path"]


def run(name, program, manifest, arguments=None, **more):
    folder = os.path.dirname(manifest)
    began = time.monotonic()
    done = subprocess.run(
        [program, *(sys.argv[1:] if arguments is None else arguments)],
        cwd=folder,
        env={**os.environ, "CARGO_MANIFEST_DIR": folder, "DOE_LANES": "1", **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return name, done, time.monotonic() - began


def main():
    found = sorted(programs(), key=lambda one: LONG.index(one[0]) if one[0] in LONG else len(LONG))
    if not found:
        sys.exit("no test program was built")
    lanes = int(os.environ.get("DOE_TEST_LANES", "2"))
    # What an earlier run has shown is nothing that this one has.
    target = os.path.dirname(os.path.dirname(os.path.dirname(found[0][1])))
    told = os.path.join(target, "tmp", "conformance")
    shutil.rmtree(told, ignore_errors=True)
    failed = []
    with ThreadPoolExecutor(max_workers=lanes) as pool:
        for job in as_completed([pool.submit(run, *one) for one in found]):
            name, done, seconds = job.result()
            print(f"\n     Ran {name} in {seconds:.0f} s", flush=True)
            sys.stdout.buffer.write(done.stdout)
            sys.stdout.flush()
            if done.returncode != 0:
                failed.append(name)
    os.makedirs(told, exist_ok=True)
    open(os.path.join(told, "whole"), "w", encoding="utf-8").close()
    tables = [one for one in found if one[0] == "conformance_table"]
    for table in tables:
        name, done, _ = run(*table, ["--nocapture", "--exact", "what_was_run"], DOE_WHOLE_RUN="1")
        print(flush=True)
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.flush()
        if done.returncode != 0:
            failed.append(f"{name} (of the whole run)")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


main()
