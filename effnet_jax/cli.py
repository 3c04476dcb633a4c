"""How every command starts and ends: flags, quiet logs, the compilation cache, exit codes.

Exit codes: 0 done; 2 bad input, told in one message; 3 the loss was not finite; 75 interrupted,
a checkpoint was saved and the same command goes on with it (EX_TEMPFAIL: a scheduler may requeue).
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import jax
from absl import flags, logging

from effnet_jax.data.sources import cache_dir
from effnet_jax.errors import Interrupted, NonFiniteLossError, UserError

DONE, BAD_INPUT, NOT_FINITE, INTERRUPTED = 0, 2, 3, 75


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs; $JAX_COMPILATION_CACHE_DIR chooses another place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    code, message = DONE, ""
    try:
        yield
    except UserError as error:
        code, message = BAD_INPUT, f"error: {error}"
    except NonFiniteLossError as error:
        code, message = NOT_FINITE, f"error: {error}"
    except Interrupted as error:
        code, message = INTERRUPTED, str(error)
    if code:
        print(message, file=sys.stderr)
        sys.exit(code)


def run(main: Callable[[], None]) -> None:
    """Runs a command's `main`, and turns the errors meant for people into a message and a code."""
    logging.set_verbosity(logging.ERROR)
    use_compilation_cache()
    with _exit_codes():
        main()


def run_with_flags(main: Callable[[], None]) -> None:
    """As `run`, after absl flags were read from the command line."""
    with _exit_codes():
        try:
            left = flags.FLAGS(sys.argv)[1:]
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, UserError):
                raise
            text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
            raise UserError(f"{text.strip()}\nTry --help") from None
        if left:
            raise UserError(f"unexpected argument {left[0]!r}; flags are --name=value. Try --help")
    run(main)
