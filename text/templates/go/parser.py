"""Builds the tree of a Go template, checking what Go checks before running: names, nesting, variables."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import NoReturn

from . import literals
from .lexer import Token, quoted, syntax_error, tokens
from .nodes import (
    Action,
    Block,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Nil,
    Node,
    Operand,
    Pipe,
    Text,
    Variable,
)

MAX_SOURCE = 1 << 20  # characters; the largest published templates have 20 thousand
MAX_DEPTH = 100  # nested blocks and parentheses, so that hostile nesting cannot exhaust Python's stack

_OPERANDS = frozenset(["bool", "char", ".", "field", "word", "number", "nil", "raw", "string", "variable", "("])


def parse(source: str, functions: Container[str]) -> Mapping[str, Block]:
    """Return the blocks that source defines by name; "" is the template itself.

    functions: names that may be called. Raises BadRequest with Go's text and the line.
    """
    return _Parser(source, functions).templates()


class _Parser:
    """Recursive descent with two tokens of look-ahead, shaped like the grammar in Go's documentation."""

    def __init__(self, source: str, functions: Container[str]) -> None:
        if len(source) > MAX_SOURCE:
            syntax_error("", 0, f"template has {len(source)} characters, the limit is {MAX_SOURCE}")
        self._source = source
        self._functions = functions
        self._tokens: Iterator[Token] = tokens(source)
        self._ahead: list[Token] = []  # tokens put back, the next one last
        self._last = Token("eof", "", 0)
        self._variables = ["$"]
        self._defined: dict[str, Block] = {}
        self._depth = self._ranges = 0

    def templates(self) -> Mapping[str, Block]:
        nodes: list[Node] = []
        while (token := self._next()).kind != "eof":
            if token.kind == "{{" and self._peek_word().kind == "define":
                self._next_word()
                self._definition()
            else:
                self._put_back(token)
                nodes.append(self._element())
        return {**self._defined, "": tuple(nodes)}

    # Tokens

    def _fail(self, problem: str) -> NoReturn:
        syntax_error(self._source, self._last.at, problem)

    def _next(self) -> Token:
        self._last = self._ahead.pop() if self._ahead else next(self._tokens, Token("eof", "", len(self._source)))
        return self._last

    def _put_back(self, *read: Token) -> None:
        self._ahead.extend(reversed(read))

    def _peek(self) -> Token:
        token = self._next()
        self._put_back(token)
        return token

    def _next_word(self) -> Token:
        """Return the next token that is not white space."""
        while (token := self._next()).kind == "space":
            pass
        return token

    def _peek_word(self) -> Token:
        token = self._next_word()
        self._put_back(token)
        return token

    def _expect(self, kind: str, context: str) -> Token:
        token = self._next_word()
        if token.kind != kind:
            self._fail(f"unexpected {token} in {context}")
        return token

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail("max expression depth exceeded")

    # Blocks

    def _definition(self) -> None:
        name = self._template_name("define clause")
        self._expect("}}", "define clause")
        self._add(name, self._separate_block("define clause"))

    def _separate_block(self, context: str) -> Block:
        """Parse the body of another template: it sees no variables and no loop of the one around it."""
        outer = self._variables, self._ranges
        self._variables, self._ranges = ["$"], 0
        body, end = self._block()
        if end != "end":
            self._fail(f"unexpected {{{{{end}}}}} in {context}")
        self._variables, self._ranges = outer
        return body

    def _add(self, name: str, body: Block) -> None:
        if _has_content(self._defined.get(name, ())):
            if _has_content(body):
                self._fail(f'template: multiple definition of template "{name}"')
            return
        self._defined[name] = body

    def _block(self) -> tuple[Block, str]:
        """Return the nodes up to, and the keyword of, the `end` or `else` that closes them."""
        nodes: list[Node] = []
        while True:
            token = self._next()
            if token.kind == "eof":
                self._fail("unexpected EOF")
            if token.kind == "{{" and (word := self._peek_word()).kind in ("end", "else"):
                return tuple(nodes), self._close(word.kind)
            self._put_back(token)
            nodes.append(self._element())

    def _close(self, keyword: str) -> str:
        self._next_word()
        if keyword == "end":
            self._expect("}}", "end")
        elif self._peek_word().kind not in ("if", "with"):  # these stay pending for _control
            self._expect("}}", "else")
        return keyword

    def _element(self) -> Node:
        token = self._next()
        if token.kind == "text":
            return Text(token.at, token.text)
        if token.kind != "{{":
            self._fail(f"unexpected {token} in input")
        word = self._peek_word()
        if word.kind in ("end", "else"):
            self._next_word()
            self._fail(f"unexpected {{{{{word.kind}}}}}")
        if word.kind in ("if", "with", "range", "block", "template", "break", "continue"):
            self._next_word()
        match word.kind:
            case "if" | "with" | "range":
                return self._control(word)
            case "block":
                return self._inline_definition()
            case "template":
                return self._call()
            case "break" | "continue":
                return self._jump(word)
        return Action(word.at, self._pipeline("command", "}}"))

    def _control(self, word: Token) -> Branch:
        self._descend()
        outer = len(self._variables)
        pipe = self._pipeline(word.kind, "}}")
        self._ranges += word.kind == "range"
        body, end = self._block()
        self._ranges -= word.kind == "range"
        otherwise = self._otherwise(word.kind) if end == "else" else ()
        del self._variables[outer:]
        self._depth -= 1
        return Branch(word.at, word.kind, pipe, body, otherwise)

    def _otherwise(self, kind: str) -> Block:
        if kind != "range" and self._peek().kind == kind:  # `else if` or `else with`: its `end` closes both
            return (self._control(self._next()),)
        body, end = self._block()
        if end != "end":
            self._fail("expected end; found {{else}}")
        return body

    def _inline_definition(self) -> Call:
        at, name = self._peek_word().at, self._template_name("block clause")
        pipe = self._pipeline("block clause", "}}")
        self._descend()
        self._add(name, self._separate_block("block clause"))
        self._depth -= 1
        return Call(at, name, pipe)

    def _call(self) -> Call:
        at, name = self._peek_word().at, self._template_name("template clause")
        if self._peek_word().kind == "}}":
            self._next_word()
            return Call(at, name, None)
        return Call(at, name, self._pipeline("template clause", "}}"))

    def _template_name(self, context: str) -> str:
        token = self._next_word()
        if token.kind not in ("string", "raw"):
            self._fail(f"unexpected {token} in {context}")
        return self._unquoted(token)

    def _jump(self, word: Token) -> Jump:
        self._expect("}}", f"{{{{{word.kind}}}}}")
        if not self._ranges:
            self._fail(f"{{{{{word.kind}}}}} outside {{{{range}}}}")
        return Jump(word.at, word.kind)

    # Pipelines

    def _pipeline(self, context: str, end: str) -> Pipe:
        self._descend()
        at = self._peek_word().at
        declared, assigns = self._declarations(context)
        commands: list[Command] = []
        while (token := self._next_word()).kind != end:
            if token.kind not in _OPERANDS:
                self._fail(f"unexpected {token} in {context}")
            self._put_back(token)
            commands.append(self._command())
        self._check_commands(commands, context)
        self._depth -= 1
        return Pipe(at, tuple(declared), assigns, tuple(commands))

    def _check_commands(self, commands: list[Command], context: str) -> None:
        if not commands:
            self._fail(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command.operands[0], Dot | Nil | Literal):
                self._fail(f"non executable command in pipeline stage {stage}")

    def _declarations(self, context: str) -> tuple[list[str], bool]:
        """Return the variables in front of `:=` or `=`, and whether it was `=`. They are in scope from here on."""
        declared: list[str] = []
        while self._peek_word().kind == "variable":
            variable = self._next_word()
            after = self._next()
            sign = self._next_word() if after.kind == "space" else after
            if sign.kind not in (":=", "=", ","):
                self._put_back(variable, *((after, sign) if after is not sign else (after,)))
                break
            declared.append(variable.text)
            self._variables.append(variable.text)
            if sign.kind != ",":
                return declared, sign.kind == "="
            self._check_second_variable(declared, context)
        return declared, False

    def _check_second_variable(self, declared: list[str], context: str) -> None:
        if context != "range" or len(declared) == 2:
            self._fail(f"too many declarations in {context}")
        if self._peek_word().kind not in ("variable", "}}", ")"):
            self._fail("range can only initialize variables")

    def _command(self) -> Command:
        operands: list[Operand] = []
        at = self._peek_word().at
        while True:
            if operand := self._operand():
                operands.append(operand)
            token = self._next()
            if token.kind in ("}}", ")"):
                self._put_back(token)
            elif token.kind == "space":
                continue
            elif token.kind != "|":
                self._fail(f"unexpected {token} in operand")
            break
        if not operands:
            self._fail("empty command")
        return Command(at, tuple(operands))

    def _operand(self) -> Operand | None:
        term = self._term()
        if term is None or self._peek().kind != "field":
            return term
        at, names = self._peek().at, []
        while self._peek().kind == "field":
            names.append(self._next().text[1:])
        match term:
            case Field():
                return Field(at, (*term.names, *names))
            case Variable():
                return Variable(at, term.name, tuple(names))
            case Dot() | Nil() | Literal():
                self._fail(f"unexpected . after term {quoted(self._source[term.at : at])}")
        return Chain(at, term, tuple(names))

    def _term(self) -> Operand | None:
        token = self._next_word()
        match token.kind:
            case "word":
                if token.text not in self._functions:
                    self._fail(f'function "{token.text}" not defined')
                return Function(token.at, token.text)
            case ".":
                return Dot(token.at)
            case "nil":
                return Nil(token.at)
            case "variable":
                if token.text not in self._variables:
                    self._fail(f'undefined variable "{token.text}"')
                return Variable(token.at, token.text)
            case "field":
                return Field(token.at, (token.text[1:],))
            case "(":
                return self._pipeline("parenthesized pipeline", ")")
            case "bool" | "char" | "number" | "string" | "raw":
                return Literal(token.at, self._literal(token), token.text)
        self._put_back(token)
        return None

    def _literal(self, token: Token) -> str | int | float | bool:
        if token.kind == "bool":
            return token.text == "true"
        if token.kind in ("string", "raw"):
            return self._unquoted(token)
        try:
            return literals.character(token.text) if token.kind == "char" else literals.number(token.text)
        except ValueError as error:
            self._fail(str(error))

    def _unquoted(self, token: Token) -> str:
        try:
            return literals.unquote(token.text)
        except ValueError as error:
            self._fail(str(error))


def _has_content(block: Block) -> bool:
    return any(not isinstance(node, Text) or node.text.strip() for node in block)
