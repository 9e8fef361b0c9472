"""What agents do to a tree of files, timed inside the machine that does it.

    python3 work.py DIRECTORY NAME      prints a line of JSON: milliseconds by what was done

DIRECTORY holds `tree`, a git repository of small files, which is read, and gets `made`, which is removed.
"""

import json
import os
import shutil
import subprocess
import sys
import time

place, name = sys.argv[1:]
tree, made = os.path.join(place, "tree"), os.path.join(place, "made")
took = {}


class timed:
    def __init__(self, what):
        self.what = what

    def __enter__(self):
        self.begun = time.monotonic()

    def __exit__(self, *_):
        took[self.what] = round(1000 * (time.monotonic() - self.begun), 1)


def walk(root):
    paths = []
    for directory, names, files in os.walk(root):
        if ".git" in names:
            names.remove(".git")
        paths += (os.path.join(directory, file) for file in files)
    return paths


shutil.rmtree(made, ignore_errors=True)
with timed("find, the first time"):
    paths = walk(tree)
with timed("stat each file"):
    for path in paths:
        os.stat(path)
with timed("stat each again"):
    for path in paths:
        os.stat(path)
with timed("read each file"):
    for path in paths:
        with open(path, "rb") as file:
            file.read()
with timed("git status"):
    status = ["git", "-c", "safe.directory=*", "-C", tree, "status", "--porcelain"]
    subprocess.run(status, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"})
with timed("git grep"):
    grep = ["git", "-c", "safe.directory=*", "-C", tree, "grep", "--no-index", "-c", "no such words"]
    subprocess.run(grep, stdout=subprocess.DEVNULL)
os.mkdir(made)
with timed("create 500 small files"):
    for number in range(500):
        with open(os.path.join(made, f"f{number}"), "wb") as file:
            file.write(b"x" * 2000)
with timed("rename them"):
    for number in range(500):
        os.rename(os.path.join(made, f"f{number}"), os.path.join(made, f"g{number}"))
with timed("remove them"):
    for number in range(500):
        os.unlink(os.path.join(made, f"g{number}"))
with timed("unpack a package of 300 files"):
    for number in range(300):
        directory = os.path.join(made, "node_modules", f"p{number % 30}", "lib")
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, f"{number}.js")
        with open(path, "wb") as file:
            file.write(b"module.exports = 1;\n" * 100)
        os.chmod(path, 0o644)
        os.utime(path, (1, 1))
with timed("build: read 100, write and rename 100 objects"):
    for number, path in enumerate(paths[:100]):
        with open(path, "rb") as file:
            content = file.read()
        new = os.path.join(made, f"{number}.o.tmp")
        with open(new, "wb") as file:
            file.write(content * 10)
        os.rename(new, os.path.join(made, f"{number}.o"))
with timed("write 32 MiB"):
    with open(os.path.join(made, "large"), "wb", 0) as file:
        for _ in range(32):
            file.write(b"\0" * (1 << 20))
with timed("read 32 MiB"):
    with open(os.path.join(made, "large"), "rb", 0) as file:
        while file.read(1 << 20):
            pass
shutil.rmtree(made)
print("\n" + json.dumps({"name": name, "took": took}), flush=True)
