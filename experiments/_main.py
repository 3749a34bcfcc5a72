"""The command line: ``secure-ml COMMAND``, one command for each script in this folder."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if all went well, 2 if the request was wrong, 130 if it was interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = descriptions()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(commands))
        return 0
    name, *rest = arguments
    if name not in commands:
        from secure_ml.errors import unknown

        return _refuse(str(unknown("command", name, commands)))
    from secure_ml.errors import SecureMLError

    try:
        return int(import_module(f"experiments.{name}").main(rest))
    except SecureMLError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("secure-ml: interrupted; the same command resumes what was not finished", file=sys.stderr)
        return 130


def descriptions() -> dict[str, str]:
    """The commands and the first line of each script, read without running it."""
    scripts = sorted(p for p in Path(__file__).parent.glob("*.py") if not p.name.startswith("_"))
    return {p.stem: (ast.get_docstring(ast.parse(p.read_text())) or "").partition("\n")[0] for p in scripts}


def _help(commands: dict[str, str]) -> str:
    lines = [f"  {name:<12} {text}" for name, text in commands.items()]
    return "\n".join(
        [
            "usage: secure-ml COMMAND [options]",
            "",
            "Protect, attack and measure any PyTorch model.",
            "",
            *lines,
            "",
            "secure-ml COMMAND --help lists the options of a command.",
        ]
    )


def _refuse(message: str) -> int:
    print(f"secure-ml: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
