"""Writes the layers of a deep image: layers.py FOLDER, as FOLDER/NUMBER.tar.

Each of them adds, changes, hides and links something of those below.
"""

import io
import sys
import tarfile

LAYERS = 30
# cap_net_raw=ep (linux/capability.h, struct vfs_cap_data).
CAPABILITY = bytes([1, 0, 0, 2, 0, 32]) + bytes(14)


def write(path, number):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name, kind, mode, size=0, target="", owner=(number, 100 + number), pax=None):
            info = tarfile.TarInfo(f"t/{name}".rstrip("/"))
            info.type, info.mode, info.size, info.linkname = kind, mode, size, target
            info.uid, info.gid = owner
            info.mtime = 1_000_000_000 + number + 0.25
            info.pax_headers = pax or {}
            tar.addfile(info, io.BytesIO(bytes([number]) * size))

        file, folder = tarfile.REGTYPE, tarfile.DIRTYPE
        own, size = str(number), 100 * number
        add("", folder, 0o755, owner=(0, 0))
        add(own, folder, 0o700 + number % 8)
        add(f"{own}/file", file, 0o644, size)
        add(f"{own}/goes", file, 0o600, size)
        add(f"{own}/folder", folder, 0o1755)
        add(f"{own}/folder/low", file, 0o600, size)
        add(f"{own}/symbolic", tarfile.SYMTYPE, 0o777, target="../0/file")
        add(f"{own}/program", file, 0o6755, 10)
        add(f"{own}/fifo", tarfile.FIFOTYPE, 0o620)
        add("last", file, 0o640, size)
        if number > 0:
            below = str(number - 1)
            add(f"{own}/linked", tarfile.LNKTYPE, 0o644, target=f"t/{below}/file")
            add(f"{below}/.wh.goes", file, 0o644, owner=(0, 0))
            add(f"{below}/folder/.wh..wh..opq", file, 0o644, owner=(0, 0))
            add(f"{below}/folder/high", file, 0o640, size)
        if number % 10 == 7:
            attributes = {"security.capability": CAPABILITY, "user.note": b"a note"}
            pax = {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in attributes.items()}
            add(f"{own}/raw", file, 0o755, 5, pax=pax)


for number in range(LAYERS):
    write(f"{sys.argv[1]}/{number}.tar", number)
