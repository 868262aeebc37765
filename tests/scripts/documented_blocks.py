"""The code blocks of the Markdown files, and the commands of a shell block.

A block that cannot be run here has a comment before it, which names the reason:

    <!-- not run: needs a kubelet -->

The comment is not shown to readers. Every other shell block is run by tests/scripts/documented-commands.
"""

import re
import shlex
import textwrap
from dataclasses import dataclass, field

SHELLS = ("sh", "bash", "console", "shell")
FENCE = re.compile(r"^( *)```(\S*)")
MARKER = re.compile(r"^ *<!-- not run: (.*) -->$")
HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
# `# values.yaml` or `// receiver.mjs` as the first line of a block is the name under which readers save it.
FILE_NAME = re.compile(r"^(?:#|//) ([\w-]+\.\w+)$")


@dataclass
class Block:
    document: str
    line: int  # of the opening fence, from 1
    language: str
    text: str
    not_run: str | None = None  # the reason

    @property
    def is_shell(self):
        return self.language in SHELLS

    @property
    def place(self):
        return f"{self.document}:{self.line}"

    @property
    def file_name(self):
        found = FILE_NAME.match(self.text.split("\n", 1)[0])
        return found[1] if found and not self.is_shell else None


@dataclass
class Command:
    text: str
    line: int

    @property
    def must_fail(self):
        """A trailing comment says so: `command # fails, and prints all names`."""
        return re.search(r"# fails\b", self.text) is not None


@dataclass
class Document:
    path: str
    blocks: list[Block] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def parse(path, text):
    """Returns the blocks of a Markdown file. A marker that belongs to no shell block is an error."""
    document = Document(path)
    lines = text.split("\n")
    number, reason = 0, None
    while number < len(lines):
        line = lines[number]
        marker, fence = MARKER.match(line), FENCE.match(line)
        if marker:
            if reason:
                document.errors.append(f"{path}:{number + 1}: two markers before one block")
            reason = marker[1].strip()
            if len(reason.split()) < 3:
                document.errors.append(f"{path}:{number + 1}: the marker does not say why")
        elif fence:
            end = next((at for at in range(number + 1, len(lines)) if lines[at].strip() == "```"), None)
            if end is None:
                document.errors.append(f"{path}:{number + 1}: the block does not end")
                break
            code = textwrap.dedent("\n".join(lines[number + 1 : end]))
            block = Block(path, number + 1, fence[2], code, reason)
            if reason and not block.is_shell:
                document.errors.append(f"{block.place}: a marker before a block that is no shell block")
            if not block.is_shell and re.search(r"^\$ ", code, re.M):
                document.errors.append(f"{block.place}: commands in a block of the language '{fence[2]}'")
            document.blocks.append(block)
            number, reason = end, None
        elif line.strip() and reason:
            document.errors.append(f"{path}:{number + 1}: the marker before this line belongs to no block")
            reason = None
        number += 1
    return document


def is_open(text):
    """Whether a command goes on in the next line: after a backslash, or inside of quotes."""
    if text.endswith("\\"):
        return True
    try:
        shlex.split(text, comments=True)
        return False
    except ValueError:
        return True


def commands(block):
    """Splits a shell block into commands: one for each line, with its continuation lines or here-document."""
    found, lines, at = [], block.text.split("\n"), 0
    while at < len(lines):
        first, text = at, lines[at]
        while is_open(text) and at + 1 < len(lines):
            at += 1
            text += "\n" + lines[at]
        heredoc = HEREDOC.search(text)
        while heredoc and at + 1 < len(lines):
            at += 1
            text += "\n" + lines[at]
            if lines[at].strip() == heredoc[1]:
                break
        if text.strip() and not text.lstrip().startswith("#"):
            found.append(Command(text, block.line + 1 + first))
        at += 1
    return found
