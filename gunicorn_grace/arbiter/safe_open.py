"""Opening a file by a path on which other users may have put something.

In a folder that everybody may write to, such as ``/tmp`` or an ``emptyDir``, another user can put a
link in the place of a file that root is about to write. Root would overwrite the target of the
link. The kernel prevents this only in sticky folders, and only if ``fs.protected_symlinks`` and
``fs.protected_hardlinks`` are set (proc_sys_fs(5)). Runs in the arbiter.
"""

from __future__ import annotations

import errno
import os
import stat

LONGEST_CHAIN = 40
"""How many links are followed (path_resolution(7))."""


def safe_open(path: str, flags: int, mode: int = 0o777) -> int:
    """Open a file like ``os.open``, but refuse two things in a folder that everybody may write to:
    a link of another user, unless that user owns the folder, and a file with a second name.

    Each part of the path is opened below the previous part and checked there, so that nobody can
    replace it in between. The kernel makes the links in /proc, so they are followed.
    ``/dev/stderr`` leads to one.

    :param path: the file.
    :param flags: as for ``os.open``.
    :param mode: as for ``os.open``.
    :returns: the descriptor.
    :raises OSError: the file cannot be opened, or the path is refused (``PermissionError``).
    """
    if not hasattr(os, "O_PATH"):  # Only Linux has it.
        return os.open(path, flags, mode)
    look = os.O_PATH | os.O_CLOEXEC
    left = path.split("/")[::-1]
    here = os.open("/" if path.startswith("/") else ".", look)
    links = 0
    try:
        while left:
            name = left.pop()
            if not name or name == ".":
                continue
            is_last = not any(part not in ("", ".") for part in left)
            if _is_in_proc(here):
                if is_last:
                    return os.open(name, flags, mode, dir_fd=here)
                here = _step(here, os.open(name, look, dir_fd=here))
                continue
            is_link = False
            try:
                there = os.open(name, look | os.O_NOFOLLOW, dir_fd=here)
            except FileNotFoundError:
                there = -1
            try:
                is_link = there >= 0 and stat.S_ISLNK(os.fstat(there).st_mode)
                if is_link:
                    links += 1
                    if links > LONGEST_CHAIN:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    _refuse_a_foreign_link(here, there, path)
                    target = os.readlink("", dir_fd=there)
            finally:
                if there >= 0 and (is_last or is_link):
                    os.close(there)
            if is_link:
                left += target.split("/")[::-1]
                if target.startswith("/"):
                    here = _step(here, os.open("/", look))
            elif is_last:
                return _open_last(name, flags, mode, here, path)
            elif there < 0:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            else:
                here = _step(here, there)
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    finally:
        os.close(here)


def _step(here: int, there: int) -> int:
    os.close(here)
    return there


def _is_in_proc(folder: int) -> bool:
    try:
        return os.fstat(folder).st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


def _may_be_written_by_all(folder: int) -> bool:
    return bool(os.fstat(folder).st_mode & stat.S_IWOTH)


def _refuse_a_foreign_link(folder: int, link: int, path: str) -> None:
    owner = os.fstat(link).st_uid
    if _may_be_written_by_all(folder) and owner not in (os.geteuid(), os.fstat(folder).st_uid):
        raise PermissionError(
            errno.EACCES,
            f"a link of user {owner} in a folder that everybody may write to is not followed: "
            "give a path in a folder of your own",
            path,
        )


def _open_last(name: str, flags: int, mode: int, folder: int, path: str) -> int:
    fd = os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
    there = os.fstat(fd)
    if stat.S_ISREG(there.st_mode) and there.st_nlink > 1 and _may_be_written_by_all(folder):
        os.close(fd)
        raise PermissionError(
            errno.EACCES,
            f"a file with {there.st_nlink} names in a folder that everybody may write to is not "
            "overwritten: give a path in a folder of your own",
            path,
        )
    return fd
