"""What the file system refuses, as what the user can do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.errors import UserError


@contextmanager
def disk_errors(output: Path, when_full: str) -> Iterator[None]:
    """Turn errors of the disk and of paths into user errors; others pass.

    Args:
        when_full: what to do about a full disk: how much is needed, and what running the command again does.

    Raises:
        UserError: full disk or quota, no permission, a path that cannot be.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or output
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk is full while writing {output} ({where}). {when_full}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"No permission: {where} ({error.strerror}). Check its owner and mode, or choose another path."
            ) from error
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.EMFILE):
            raise UserError(f"{where}: {error.strerror}. Check the path.") from error
        raise
