"""Prints all that tells one tree of files from another: list.py ROOT CONTENT..., a line a file.

Of files below a CONTENT the line has the hash of what is in them, too.
"""

import hashlib
import os
import stat
import sys

# What an engine mounts or writes, and folders that it writes into.
OWN = {"/dev", "/proc", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/host"}
TOUCHED = {"/", "/etc"}


def show(root, path, content):
    real = root + path
    about = os.lstat(real)
    mode = about.st_mode
    words = [repr(path), oct(mode), f"{about.st_uid}:{about.st_gid}"]
    if path not in TOUCHED:
        words.append(str(about.st_mtime_ns))
    if stat.S_ISLNK(mode):
        words.append(repr(os.readlink(real)))
    elif stat.S_ISREG(mode):
        words.append(str(about.st_size))
        if content:
            with open(real, "rb") as file:
                words.append(hashlib.sha256(file.read()).hexdigest()[:16])
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        words.append(hex(about.st_rdev))
    if not stat.S_ISDIR(mode):
        words.append(f"links {about.st_nlink}")
    for name in sorted(os.listxattr(real, follow_symlinks=False)):
        words.append(f"{name}={os.getxattr(real, name, follow_symlinks=False).hex()}")
    print(*words)
    if stat.S_ISDIR(mode):
        for name in sorted(os.listdir(real)):
            child = path.rstrip("/") + "/" + name
            if child not in OWN:
                show(root, child, content or child in sys.argv[2:])


show(sys.argv[1].rstrip("/"), "/", False)
