"""What a pickle looks up, read from its opcodes without running it."""

import pickletools
from collections.abc import Iterator


def names_in(pickled: bytes) -> Iterator[tuple[str, str]]:
    """Module and name of every class and function that a pickle looks up."""
    pushed: list[str | None] = []
    memo: dict[int, str | None] = {}
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            yield tuple(argument.split(" ", 1))
        elif opcode.name == "STACK_GLOBAL":
            yield pushed[-2], pushed[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif "PUT" in opcode.name:
            memo[int(argument)] = last
        last = None
        if "UNICODE" in opcode.name:
            last = argument
        elif opcode.name.endswith("GET"):
            last = memo[int(argument)]
        if last is not None:
            pushed.append(last)


def strings_in(pickled: bytes) -> Iterator[bytes]:
    """The bytes objects in a pickle, where another pickle may lie."""
    for _, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, bytes | bytearray):
            yield bytes(argument)
