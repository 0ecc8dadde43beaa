"""Check of a file of any origin before HDF5 opens it in this process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from regimes.errors import UserError

PROBE = Path(__file__).with_name("hdf5_probe.py")
NETCDF3 = (b"CDF\x01", b"CDF\x02", b"CDF\x05")


def check_hdf5(path: Path) -> None:
    """Refuse a file that is not a plain, undamaged HDF5 file; see `hdf5_probe`.

    Raises:
        UserError: the file is refused, or HDF5 crashes or takes too long on it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected a run folder or a netCDF grid")
    if not path.is_file():
        raise UserError(f"{path}: not a regular file; expected a run folder or a netCDF grid")
    with path.open("rb") as stream:
        if stream.read(4) in NETCDF3:
            raise UserError(f"{path}: netCDF-3; convert it to netCDF-4: nccopy -k nc4 {path.name} NEW.nc")
    command = [sys.executable, "-P", str(PROBE), str(path.absolute())]
    probe = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if probe.stdout:
        raise UserError(f"{path}: {probe.stdout.strip()}")
    if probe.returncode < 0:
        name = signal.Signals(-probe.returncode).name
        raise UserError(f"{path}: damaged, or too much to read: HDF5 was ended by {name} when reading it")
    if probe.returncode:
        raise UserError(f"{path}: cannot be checked: {PROBE.name} fails with {probe.stderr.strip().splitlines()[-1]}")
