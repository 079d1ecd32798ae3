"""The tests on Pythons that this machine does not have: ``python tests/long/pythons.py``, as root
on Debian or its kin.

A new Python is in Debian unstable long before an image or a build of it is anywhere else. This
script makes a root folder with Debian unstable in it, installs the Pythons there, copies the
project's tracked files in as they are in the work tree, and builds and installs the project with
the newest gunicorn in a virtual environment of each Python. Then it runs pytest there. The root
folder stays, with the Pythons and what pip has downloaded, and the next run starts with it. The
project and the virtual environments go with the run.

Everything runs in mount and PID namespaces of its own. The kernel undoes the mounts and ends the
processes with them, however the run ends, even if this script is killed. The network is the
machine's.

What pip on this machine is told by its configuration files and by PIP_* in the environment holds
inside as well. The files and folders that they name can be read there under the same path.

Exit code: 0 every Python passed; 1 one did not; 2 the options are wrong; 77 it could not be tried,
here or with one of the Pythons; 130, 143, 129 it was interrupted.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

PROJECT = Path(__file__).resolve().parents[2]
SUITE = "sid"
CANNOT = 77
LIMIT = 1500.0

TOOLS = ("procps", "curl", "ca-certificates")
"""What the tests use and a minimal Debian lacks."""
NEEDED = ("debootstrap", "git", "setpriv", "unshare", "mount", "chroot")

MARK = "etc/made-by-pythons.py"
WORK = Path("/srv/run")
"""Where the project and the virtual environments are inside. The next run removes what a killed one
left there."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PASSED_ON = {*CERTIFICATES, *PROXIES, "CI", "COLUMNS", "RERUNS", "TERM"}
PIP_FOLDERS = {
    "PIP_CACHE_DIR",
    "PIP_LOG",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_SRC",
    "PIP_TARGET",
    "PIP_USER",
}
"""Where pip would write. Inside it writes into the virtual environment alone."""

NO_MOUNT = 125
# The shell is PID 1 of the namespace. It waits for the command, and reaps what the tests leave
# behind. The root folder is mounted on itself, because a test can make a mount namespace only where
# "/" is a mount point.
ENTER = f"""
root=$1; shift
mount --rbind "$root" "$root" && mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" &&
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm" && mount -t tmpfs -o mode=1777 tmpfs "$root/tmp" || exit {NO_MOUNT}
while [ "$1" != -- ]; do
    mount --rbind "$1" "$root$2" && mount -o remount,bind,ro "$root$2" || exit {NO_MOUNT}
    shift 2
done
shift
chroot "$root" "$@"
exit $?
"""


class CannotRunError(Exception):
    """Nothing can be tried here."""


class NotToBeHadError(Exception):
    """This Python cannot be tried here."""


class TimeIsUpError(Exception):
    """The limit is over."""


# -- processes ----


class Runner:
    """Runs commands until the limit is over, each in namespaces of its own."""

    def __init__(self, limit: float) -> None:
        self.deadline = time.monotonic() + limit

    def isolated(self, command: Sequence[str], *, shown: bool = False) -> tuple[int, str]:
        """The exit code and the output, if that is not shown. Of the command nothing is left when
        this returns.

        :raises TimeIsUpError: it was ended for it.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeIsUpError
        # The first link dies with this process, the second with the first, and the kernel kills the
        # rest.
        chain = [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
        ]
        process = subprocess.Popen(
            [*chain, *command],
            stdin=subprocess.DEVNULL,
            stdout=None if shown else subprocess.PIPE,
            stderr=None if shown else subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment(),
            start_new_session=True,  # Ctrl-C is for this process alone.
        )
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            raise TimeIsUpError from None
        finally:
            end(process)
        return process.returncode, output or ""


def end(process: subprocess.Popen[str]) -> None:
    """End a namespace. unshare ends after PID 1 there, and PID 1 after all others: when it is
    reaped, none is left."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            for child in (
                Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ):
                os.kill(int(child), signal.SIGKILL)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def environment() -> dict[str, str]:
    """What commands get from this process's environment. The rest could change what is tested."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or (name.startswith("PIP_") and name not in PIP_FOLDERS)
    }
    fixed = {
        "PATH": PATH,
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    return {**ours, **fixed, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def interrupt(number: int, frame: object) -> NoReturn:
    """Leave by the way that tidies up, which a second signal does not cut short."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def reason_in(output: str) -> str:
    """The line of a command's output that most likely says why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(E|ERROR|error|fatal):|\w+Error:", line)]
    return (told or lines or ["it said nothing"])[-1]


# -- what this machine is told ----


def deb_lines(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """URI, suites and components of each entry in one-line style, whose other form is ``deb
    [options] URI suite``."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)([^#]*)", line.strip())
        if match:
            yield match[1], [match[2]], match[3].split()


def deb_stanzas(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """The same of each stanza in deb822 style."""
    without_comments = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(
                r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, flags=re.MULTILINE
            )
        }
        if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", ()):
                yield uri, fields.get("suites", []), fields.get("components", [])


def mirror_of(apt: Path, codename: str | None) -> str | None:
    """The mirror from which this machine gets Debian itself, not another's packages for it or its
    security updates."""
    entries: list[tuple[str, list[str], list[str]]] = []
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.suffix == ".list":
                entries += deb_lines(path.read_text())
            elif path.suffix == ".sources":
                entries += deb_stanzas(path.read_text())
    releases = {"stable", "testing", "unstable", SUITE, codename}
    for uri, suites, components in entries:
        known = uri.startswith(("http://", "https://")) and "debian" in uri
        if known and "main" in components and releases.intersection(suites):
            return uri
    return None


def debians_codename() -> str | None:
    """The name of the release of Debian that runs here."""
    with contextlib.suppress(OSError):
        told = dict(
            line.split("=", 1)
            for line in Path("/etc/os-release").read_text().splitlines()
            if "=" in line
        )
        if told.get("ID") == "debian":
            return told.get("VERSION_CODENAME")
    return None


def apt_options() -> list[str]:
    """How this machine's apt downloads: proxies, certificates, and whether the date of an index
    matters."""
    command = ["apt-config", "dump", "--no-empty", "--format", "%f=%v%n", "Acquire"]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout.splitlines()
    except OSError:
        return []
    wanted = re.compile(r"Acquire::(https?::|Check-|Retries)", re.IGNORECASE)
    return [part for line in told if wanted.match(line) for part in ("-o", line)]


def pip_files() -> list[Path]:
    """The configuration files that pip reads."""
    files = [Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf")]
    files += [Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(named))
    return [path for path in files if path.is_file()]


def paths_in(value: str) -> Iterator[Path]:
    """The files and folders of this machine that a setting names."""
    for word in value.split():
        if word.startswith("file://"):
            # Of an index, the pages are named; its files lie in a folder beside them, as a rule.
            path = Path(urllib.parse.unquote(urllib.parse.urlsplit(word).path))
            yield path.parent if path.is_dir() and path.name == "simple" else path
        elif word.startswith("/"):
            yield Path(word)


def shared_paths() -> list[Path]:
    """What of this machine can be read inside, under the same path: a folder before what is in
    it."""
    values = [
        value
        for name, value in environment().items()
        if name.startswith("PIP_") or name in CERTIFICATES
    ]
    for path in pip_files():
        parser = configparser.RawConfigParser()
        with contextlib.suppress(configparser.Error, UnicodeDecodeError):
            parser.read(path)
            values += [value for section in parser.sections() for _, value in parser.items(section)]
    if not any(os.environ.get(name) for name in CERTIFICATES):
        values.append("/etc/ssl/certs/ca-certificates.crt")
    paths = {Path("/etc/resolv.conf"), Path("/etc/hosts"), *pip_files()}
    for value in values:
        paths.update(Path(os.path.normpath(path)) for path in paths_in(value))
    return sorted(path for path in paths if path.exists() and path != Path("/"))


# -- the root folder ----


class Root:
    """A folder with Debian unstable in it."""

    def __init__(self, folder: Path, runner: Runner) -> None:
        self.folder = folder
        self.runner = runner

    def make(self, mirror: str | None) -> None:
        """Install Debian. An unfinished folder never has the name of a finished one, and is
        removed."""
        parent_was_there = self.folder.parent.exists()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.", dir=self.folder.parent))
        try:
            made.chmod(0o755)  # Some tests are nobody.
            command = [
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join(TOOLS)}",
                SUITE,
                str(made),
            ]
            code, output = self.runner.isolated([*command, *([mirror] if mirror else [])])
            if code:
                raise CannotRunError(f"debootstrap failed: {reason_in(output)}")
            (made / MARK).touch()
            made.rename(self.folder)
        except TimeIsUpError:
            raise CannotRunError("debootstrap did not end within the limit") from None
        except OSError as error:
            raise CannotRunError(f"{self.folder} cannot be made: {error}") from None
        finally:
            shutil.rmtree(made, ignore_errors=True)
            if not parent_was_there:
                # Something is in it, most likely the finished folder.
                with contextlib.suppress(OSError):
                    self.folder.parent.rmdir()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time is in it, and leaves nothing of its own there."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CannotRunError(f"another run is in {self.folder}") from None
            shutil.rmtree(self.inside(WORK), ignore_errors=True)
            try:
                yield
            finally:
                shutil.rmtree(self.inside(WORK), ignore_errors=True)
        finally:
            os.close(descriptor)

    def inside(self, path: Path) -> Path:
        """Where this machine sees a path of the root folder's."""
        return self.folder / path.relative_to("/")

    def run(self, *command: str, folder: Path = Path("/"), shown: bool = False) -> tuple[int, str]:
        """Run a command inside."""
        self.inside(Path.home()).mkdir(parents=True, exist_ok=True)
        mounts: list[str] = []
        for path in shared_paths():
            place = self.inside(path)
            if place.is_symlink():  # It would lead out of the root folder.
                place.unlink()
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            mounts += [str(path.resolve()), str(path)]
        enter = ["sh", "-c", ENTER, "sh", str(self.folder), *mounts, "--"]
        code, output = self.runner.isolated(
            [*enter, "env", f"--chdir={folder}", *command], shown=shown
        )
        if code == NO_MOUNT:
            raise CannotRunError(f"a mount in the namespace failed: {reason_in(output)}")
        return code, output

    def install(self, *packages: str) -> None:
        """Install Debian's packages."""
        code, output = self.run(
            "apt-get", "-q", *apt_options(), "-o", "APT::Update::Error-Mode=any", "update"
        )
        if code:
            raise CannotRunError(f"apt-get update failed: {reason_in(output)}")
        command = ["apt-get", "-q", "-y", *apt_options(), "--no-install-recommends", "install"]
        code, output = self.run(*command, *packages)
        if code:
            raise NotToBeHadError(f"apt-get install failed: {reason_in(output)}")

    def python(self, version: str) -> str:
        """The interpreter, which is installed where it is not there yet."""
        python = Path(f"/usr/bin/python{version}")
        if not self.inside(python).exists():
            self.install(f"python{version}", f"python{version}-venv")
        return str(python)


# -- the tests ----


def copy_project(target: Path) -> None:
    """Copy the tracked files, as they are in the work tree."""
    command = ["git", "-c", f"safe.directory={PROJECT}", "-C", str(PROJECT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise CannotRunError(f"the project's files are not known: {reason_in(listed.stderr)}")
    for name in listed.stdout.split("\0"):
        if name and os.path.lexists(PROJECT / name):
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, place, follow_symlinks=False)


def verdict_on(version: str, root: Root, arguments: Sequence[str]) -> str:
    """Run the tests on this Python; what came out.

    :raises NotToBeHadError: there is no such Python.
    """
    interpreter = root.python(version)
    project, venv = WORK / f"project-{version}", WORK / f"venv-{version}"
    copy_project(root.inside(project))
    code, output = root.run(interpreter, "-m", "venv", str(venv))
    if code:
        raise NotToBeHadError(f"no virtual environment can be made: {reason_in(output)}")
    pip = str(venv / "bin/pip")
    code, output = root.run(pip, "install", "-q", "--retries", "2", ".[test]", folder=project)
    if code and "after connection broken by" in output:
        raise CannotRunError(f"pip reaches no packages: {reason_in(output)}")
    if code:
        print(output)
        return f"failed (pip could not install the project: {reason_in(output)})"
    told = "import sys, gunicorn; print(f'Python {sys.version}, gunicorn {gunicorn.__version__}')"
    print(
        f"python{version}: {root.run(str(venv / 'bin/python'), '-c', told)[1].strip()}", flush=True
    )
    # pytest by its own name: `python -m pytest` would import the project from the copy, and not as
    # it is installed.
    path = f"PATH={venv}/bin:{PATH}"
    code, _ = root.run(path, "pytest", *arguments, folder=project, shown=True)
    return f"failed (exit code {code})" if code else "passed"


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and pytest's arguments, which follow ``--``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own, pytests = argv, []
    if "--" in argv:
        own, pytests = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [-- pytest's arguments]",
        description="Run the tests on Pythons of Debian unstable, in a root folder of their own.",
        epilog="Exit code: 0 all passed; 1 one failed; 2 wrong options; 77 it could not be tried.",
    )
    parser.add_argument(
        "--python",
        action="append",
        metavar="VERSION",
        help="such as 3.15, a package of Debian's; may be given again (default: 3.14 and 3.15)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=cache / "gunicorn-grace-pythons" / SUITE,
        help="the folder, which is made if it is not there (default: %(default)s)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="make the folder anew, with the Pythons of today"
    )
    parser.add_argument(
        "--mirror",
        metavar="URL",
        help="Debian's mirror (default: this machine's, or debootstrap's)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help="give up after so long (default: %(default)g)",
    )
    options = parser.parse_args(own)
    options.python = list(dict.fromkeys(options.python or ["3.14", "3.15"]))
    for version in options.python:
        if not re.fullmatch(r"3\.\d+t?", version):
            parser.error(f'--python: "{version}" is not a version such as 3.15')
    if options.limit <= 0:
        parser.error("--limit: must be more than 0")
    options.root = options.root.absolute()
    if options.root.exists() and not (options.root / MARK).exists():
        parser.error(f"--root: {options.root} is there, and was not made by this script")
    return options, pytests


def run(options: argparse.Namespace, pytests: Sequence[str]) -> int:
    """Make the folder where needed, and try each Python; the exit code."""
    if not sys.platform.startswith("linux"):
        raise CannotRunError("it needs Linux")
    if os.geteuid():
        raise CannotRunError("it needs root, for debootstrap and for mounts")
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{PATH}"
    for command in NEEDED:
        if shutil.which(command) is None:
            raise CannotRunError(f"{command} is not installed")
    runner = Runner(options.limit)
    code, output = runner.isolated(["true"])
    if code:
        raise CannotRunError(f"no namespaces are to be had: {reason_in(output)}")
    root = Root(options.root, runner)
    began = time.monotonic()
    if options.fresh and root.folder.exists():
        with root.locked():
            shutil.rmtree(root.folder)
    if not root.folder.exists():
        print(f"pythons: Debian {SUITE} is installed in {root.folder}", flush=True)
        root.make(options.mirror or mirror_of(Path("/etc/apt"), debians_codename()))
        print(f"pythons: made in {time.monotonic() - began:.0f} s", flush=True)
    verdicts: dict[str, str] = {}
    with root.locked():
        for version in options.python:
            began = time.monotonic()
            try:
                verdicts[version] = verdict_on(version, root, pytests)
            except (CannotRunError, NotToBeHadError) as error:
                verdicts[version] = f"not to be had: {error}"
                if isinstance(error, CannotRunError) and len(verdicts) == 1:
                    raise
            except TimeIsUpError:
                verdicts[version] = f"failed (the limit of {options.limit:g} s is over)"
            print(f"pythons: {time.monotonic() - began:.0f} s with python{version}", flush=True)
    for version, verdict in verdicts.items():
        print(f"python{version}: {verdict}", flush=True)
    if any(verdict.startswith("failed") for verdict in verdicts.values()):
        return 1
    return 0 if all(verdict == "passed" for verdict in verdicts.values()) else CANNOT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests on other Pythons."""
    options, pytests = parse(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        return run(options, pytests)
    except CannotRunError as error:
        print(f"pythons: cannot be tried: {error}", file=sys.stderr)
        return CANNOT
    except TimeIsUpError:
        print(
            f"pythons: cannot be tried: the limit of {options.limit:g} s is over", file=sys.stderr
        )
        return CANNOT


if __name__ == "__main__":
    sys.exit(main())
