"""The `ddpm-deploy` command: dispatches to the command modules, and gives them all the same manners."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ddpm_deploy import __version__
from ddpm_deploy.errors import DdpmDeployError

COMMANDS = {
    "train": "train a noise predictor",
    "export": "write a trained model as a bundle: ONNX graph, weights, parity figures",
    "build": "build TensorRT engines of a bundle, on the machine where they will run",
    "tune": "time the backends of this machine on a bundle, and remember the fastest",
    "sample": "draw samples from a bundle",
    "evaluate": "measure how good samples are: bits/dim, distances to real ones, solvers compared",
    "serve": "serve a bundle over HTTP, many requests in each call of the network",
    "parity": "measure how far runtimes are from the float32 torch reference",
    "bench": "compare two reports of the benchmarks, or render one again",
    "doctor": "say which runtimes can be had on this machine, and how to get the others",
}
EXTRAS = {
    "train": "train",
    "export": "export",
    "evaluate": "cpu,train",
    "serve": "cpu,serve",
    "parity": "cpu,export",
    "bench": "bench",
}
PIPE_CLOSED = 141  # as shells say of a command that SIGPIPE ended
PACKAGED = "digits (default) or shapes, the package's own"


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default in ((), []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists the options\n")


def run_command(
    parser: argparse.ArgumentParser, run: Callable[..., int | None], argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, call `run` with the arguments, and turn expected errors into one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        code = run(**vars(parser.parse_args(argv))) or 0
        if sys.stdout is not None:  # as it is where there is no console
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read the output has seen enough
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return PIPE_CLOSED
    except (DdpmDeployError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except ImportError as error:
        extras = EXTRAS.get(parser.prog.split()[-1], "cpu")
        print(f"{parser.prog}: error: {_one_line(error)}; pip install 'ddpm-deploy[{extras}]'", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from ddpm_deploy.backends.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(f"{parser.prog}: error: not enough memory for this; ask for less at once", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130


def some_path(text: str) -> Path:
    """The type of an argument that names a file or a folder: an empty one would mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty path; use . for the working directory")
    return Path(text)


def words(text: str) -> tuple[str, ...]:
    """`a,b,c`, an argument of several words."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def require_writable(file: Path) -> None:
    """Make the folder of a file to be written, or raise OSError where it cannot be: for before long work."""
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def make_parser(command: str, description: str, kind: type[Parser] = Parser) -> argparse.ArgumentParser:
    """A parser for one command; `--help` shows the defaults."""
    return kind(
        prog=f"ddpm-deploy {command}",
        description=description,
        formatter_class=Formatter,
        allow_abbrev=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `ddpm-deploy NAME ...`; the same as `python -m ddpm_deploy.NAME ...`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return _main_of(argv[0])(argv[1:])
    listing = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="ddpm-deploy",
        description="Take a denoising diffusion model from PyTorch to production.",
        epilog=f"commands:\n{listing}\n\n`ddpm-deploy NAME --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ddpm-deploy {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="NAME", help="one of the commands below")
    parser.parse_args(argv)
    return 2


def _main_of(command: str) -> Callable[[Sequence[str]], int]:
    package = {"train", "export", "parity", "bench", "evaluate", "serve"}
    module: Any = importlib.import_module(f"ddpm_deploy.{command}{'.__main__' if command in package else ''}")
    main: Callable[[Sequence[str]], int] = module.main
    return main


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


if __name__ == "__main__":
    raise SystemExit(main())
