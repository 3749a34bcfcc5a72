"""Whether a process holds some bytes anywhere in its memory, as the kernel shows it."""

from pathlib import Path

PIECE = 1 << 24


def holds(pid: int, needle: bytes) -> bool:
    """Looks through what a process and its children may write to; `PermissionError` where that is not allowed."""
    return any(_holds(one, needle) for one in family(pid))


def family(pid: int) -> list[int]:
    """The process and its children, and theirs."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


def _holds(pid: int, needle: bytes) -> bool:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, mode, *_ = line.split()
            if not mode.startswith("rw") or line.endswith(("[vvar]", "[vsyscall]")):
                continue
            at, end = (int(part, 16) for part in place.split("-"))
            tail = b""
            while at < end:
                try:
                    memory.seek(at)
                    piece = memory.read(min(PIECE, end - at))
                except (OSError, ValueError, OverflowError):
                    break
                if not piece:
                    break
                if needle in tail + piece:
                    return True
                tail, at = piece[-len(needle) :], at + len(piece)
    return False
