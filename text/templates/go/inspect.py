"""What can be read off a template without running it: the names it mentions and the marks it writes around parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .nodes import Action, Block, Branch, Call, Chain, Field, Node, Operand, Pipe, Text, Variable


def names(blocks: Mapping[str, Block]) -> frozenset[str]:
    """Return every field name anywhere in the template, in lower case."""
    return frozenset(name.lower() for block in blocks.values() for node in block for name in _node_names(node))


def _node_names(node: Node) -> Iterator[str]:
    match node:
        case Action():
            yield from _operand_names(node.pipe)
        case Call() if node.pipe:
            yield from _operand_names(node.pipe)
        case Branch():
            yield from _operand_names(node.pipe)
            for child in (*node.body, *node.otherwise):
                yield from _node_names(child)


def _operand_names(operand: Operand) -> Iterator[str]:
    match operand:
        case Field() | Variable():
            yield from operand.names
        case Chain():
            yield from operand.names
            yield from _operand_names(operand.base)
        case Pipe():
            for command in operand.commands:
                for part in command.operands:
                    yield from _operand_names(part)


def mentions(node: Node | Pipe, name: str) -> bool:
    """Return whether node uses the field `name`."""
    return name in (_operand_names(node) if isinstance(node, Pipe) else _node_names(node))


def until_response(block: Block) -> Block:
    """Return block with everything behind the first `{{ .Response }}` removed, in nested blocks too."""
    return _until_response(block)[0]


def _until_response(block: Block) -> tuple[Block, bool]:
    kept: list[Node] = []
    for node in block:
        if isinstance(node, Branch):
            body, found = _until_response(node.body)
            otherwise, found_later = ((), True) if found else _until_response(node.otherwise)
            kept.append(Branch(node.at, node.kind, node.pipe, body, otherwise))
            found = found or found_later
        else:
            kept.append(node)
            found = isinstance(node, Action) and mentions(node, "Response")
        if found:
            return tuple(kept), True
    return block if len(kept) == len(block) else tuple(kept), False


def thinking_tags(blocks: Mapping[str, Block]) -> tuple[str, str] | None:
    """Return the opening and closing text around `.Thinking` in the loop over `.Messages`; None if there are none."""
    loops = (node for block in blocks.values() for node in _branches(block) if _loops_over_messages(node))
    inner = (branch for loop in loops for branch in (loop, *_branches(loop.body)))
    for block in (side for branch in inner for side in (branch.body, branch.otherwise)):
        if any(isinstance(node, Action) and mentions(node, "Thinking") for node in block):
            first, last = block[0], block[-1]
            if isinstance(first, Text) and isinstance(last, Text) and first.text.strip() and last.text.strip():
                return first.text.strip(), last.text.strip()
    return None


def _loops_over_messages(node: Branch) -> bool:
    return node.kind == "range" and mentions(node.pipe, "Messages")


def tool_tag(blocks: Mapping[str, Block]) -> str | None:
    """Return the text that announces tool calls in the template's `if .ToolCalls`, cut at the first brace.

    "{" if the block begins with the call itself; None if the template writes no tool calls.
    """
    for block in blocks.values():
        for branch in _branches(block):
            if branch.kind == "if" and mentions(branch.pipe, "ToolCalls"):
                literals = (node.text.strip() for node in _texts(branch.body))
                return next((text for text in literals if text), "").split("{")[0].strip() or "{"
    return None


def _branches(block: Block) -> Iterator[Branch]:
    for node in block:
        if isinstance(node, Branch):
            yield node
            yield from _branches(node.body)
            yield from _branches(node.otherwise)


def _texts(block: Block) -> Iterator[Text]:
    for node in block:
        if isinstance(node, Text):
            yield node
        elif isinstance(node, Branch):
            yield from _texts(node.body)
            yield from _texts(node.otherwise)
