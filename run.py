"""How good does a video look, and why? VQAThinker-JAX rates videos from 1 to 5 with its reasoning, and learns to.

Exit status: 0 all well, 1 some input failed while the rest was done, 2 wrong usage or a checkpoint that does not load,
130 interrupted.
"""

import os
import sys
from pathlib import Path

import tyro

from commands.evaluation import evaluate
from commands.rating import ask, score
from commands.training import plan, synthesize, train, train_by
from commands.weights import convert, crosscheck, doctor, export
from vqathinker_jax import console
from vqathinker_jax.records import InputError


def main() -> int:
    """Run one command; a fault in what the user gave is one line on standard error."""
    commands = {
        "score": score,
        "ask": ask,
        "evaluate": evaluate,
        "train": train,
        "plan": plan,
        "synthesize": synthesize,
        "convert": convert,
        "export": export,
        "crosscheck": crosscheck,
        "doctor": doctor,
    }
    try:
        if sys.argv[1:2] == ["train"] and len(sys.argv) > 2 and not sys.argv[2].startswith("-"):
            return train_by(Path(sys.argv[2]), sys.argv[3:])
        return tyro.extras.subcommand_cli_from_dict(commands, prog="run.py", description=__doc__)
    except BrokenPipeError:  # whoever reads our output has seen enough; Python would flush the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it stopped" if sys.argv[1:2] == ["evaluate"] else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130
    except InputError as error:
        console.print_error(error)
        return 2
    except OSError as error:
        cure = "check the path, its permissions, and the room there"
        console.print_error(InputError(f"{error.filename}: {error.strerror}; {cure}") if error.filename else error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
