"""Fetches a coding agent from the npm registry, within a sandbox that may read and no more.

The package of the agent names one package for each platform, whose program needs nothing else. That one
is fetched, compared with what the registry says of it, and unpacked; nothing of it is run.
"""

import base64
import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

OUTPUT = "/workspace/package"
ARCHIVE = "/tmp/package.tgz"


def fail(text):
    sys.exit(text)


def get(url, accept="*/*"):
    request = urllib.request.Request(url, headers={"Accept": accept})
    return urllib.request.urlopen(request, timeout=120)


def document(registries, name):
    """What the first registry that has it says of a package, and which one that was."""
    said = "no npm registry is known"
    for registry in registries:
        url = registry.rstrip("/") + "/" + urllib.parse.quote(name, safe="@")
        try:
            with get(url, "application/vnd.npm.install-v1+json") as answer:
                return registry, json.load(answer)
        except (OSError, ValueError) as error:
            said = f"{url}: {error}"
            if isinstance(error, urllib.error.HTTPError) and error.code == 403:
                said += ": " + error.read(1000).decode(errors="replace").strip()
    fail(said)


def version_of(document, wanted):
    version = document.get("dist-tags", {}).get(wanted, wanted)
    if version not in document.get("versions", {}):
        fail(f"there is no version {wanted!r} of {document.get('name')}")
    return version


def fetch(registry, dist):
    """Brings the archive here, if it is what the registry says."""
    wanted = [one[7:] for one in dist.get("integrity", "").split() if one.startswith("sha512-")]
    if not wanted:
        fail("the registry has no sha512 of the package")
    urls = [dist["tarball"]]
    # A mirror may name the registry that it mirrors.
    path = urllib.parse.urlsplit(dist["tarball"]).path
    urls.append(urllib.parse.urljoin(registry, path))
    for url in urls:
        digest = hashlib.sha512()
        try:
            with get(url) as answer, open(ARCHIVE, "wb") as archive:
                while piece := answer.read(1 << 20):
                    digest.update(piece)
                    archive.write(piece)
            break
        except OSError as error:
            said = f"{url}: {error}"
    else:
        fail(said)
    if base64.b64encode(digest.digest()).decode() not in wanted:
        fail(f"{url} is not what the registry says it is")


def main(package, platform, wanted, left_out, present, *registries):
    registry, agent = document(registries, package)
    version = version_of(agent, wanted)
    is_new = version not in present.split(",")
    if is_new:
        of_platform = agent["versions"][version].get("optionalDependencies", {}).get(platform)
        if of_platform is None:
            fail(f"{package} {version} has nothing for this kind of computer ({platform})")
        name, exact = platform, of_platform
        if of_platform.startswith("npm:"):
            name, _, exact = of_platform[4:].rpartition("@")
        if name == package:
            named = agent
        else:
            registry, named = document(registries, name)
        exact = version_of(named, exact)
        fetch(registry, named["versions"][exact]["dist"])
        unpack = ["tar", "-xzf", ARCHIVE, "-C", OUTPUT, "--strip-components=1", "--no-same-owner"]
        if left_out:
            unpack.append("--exclude=" + left_out)
        subprocess.run(["mkdir", OUTPUT], check=True)
        subprocess.run(unpack, check=True)
    print(json.dumps({"version": version, "is_new": is_new}))


main(*sys.argv[1:])
