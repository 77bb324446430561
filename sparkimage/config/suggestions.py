"""What a value of the wrong form was meant to be."""

from __future__ import annotations

import re
from collections.abc import Callable

from sparkimage.config.address import without_login

GUESSES: tuple[Callable[[str], str], ...] = (
    lambda text: re.sub(r"\s+", "-", text) if re.fullmatch(r"[\w .-]+", text) else text,
    lambda text: re.sub(r"\s+", "", text),
    # git's and ssh's short form: https://git-scm.com/docs/git-clone#_git_urls
    lambda text: re.sub(r"^([^@/\s]+@[^:/\s]+):/?", r"ssh://\1/", text),
    without_login,
    lambda text: re.sub(r"^(https?|docker|oci|ssh)://", "", text),
    lambda text: re.sub(r"^\[([0-9a-fA-F:.]+)\]$", r"\1", text),
    lambda text: f"https://{text}" if re.match(r"[^/:@]+\.[^/:@]+/", text) else text,
    lambda text: text.removeprefix("sha256:"),
    lambda text: text.strip("/"),
    # An address with its network or its user, and a requirement with its marker.
    lambda text: re.sub(r"^([0-9a-fA-F.:]+)/[0-9]{1,3}$", r"\1", text),
    lambda text: re.sub(r"^[^@/:\s]+@([^@/\s]+)$", r"\1", text),
    lambda text: re.sub(r"(==[^;]+?)\s*;.*$", r"\1", text),
    lambda text: text.removeprefix("./").rstrip("/"),
    # A requirement that is not exact: https://peps.python.org/pep-0440/#version-specifiers
    lambda text: re.sub(r"\s*(?:[<>~!]=|={1,3}|[<>])\s*", "==", text, count=1),
    lambda text: re.sub(r"^(\d+\.\d+)\.\d+$", r"\1", text),
    lambda text: text.removeprefix("v"),
    lambda text: re.sub(r"^(\d{4})-(\d\d)-(\d\d).*", r"\1\2\3T000000Z", text),
    lambda text: f"{text}B",
    lambda text: re.sub(r"(?i)([kmg])i?b?$", lambda match: match[1].lower(), text),
    lambda text: text.lower(),
    lambda text: text if text.startswith(".") else f"/{text}".rstrip("/"),
    lambda text: text.rpartition(":")[0],
    lambda text: re.sub(r"[ _.]+", "-", text.lower()) if re.fullmatch(r"[\w .-]+", text) else text,
)
"""Ways to write the same in another form, the likeliest first."""


REQUIREMENTS = (
    (r"^-|\.txt$", "write the file's lines here, each NAME==VERSION"),
    (
        r"\.whl\b",
        "a wheel's address is a pin of kind `file`, which a layer installs: docs/images.md",
    ),
    (
        r"\bgit\+|\.git\b",
        "a repository is a pin of kind `git`, which a layer builds: docs/images.md",
    ),
    (r"==[^;]*\*", "write all of the version, without `*`"),
    (r"^[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?$", "write its version, too: `{}==VERSION`"),
)
"""What to do about a requirement that is not exact, by what it looks like."""


FORMS = {
    r"^[a-z]+:[^@\s]+$": "an address such as https://HOST/PATH",
    r"^[a-z0-9][a-z0-9/+._-]*$": "lower-case letters, digits and `/+._-`",
    r"^[a-z0-9][a-z0-9-]*$": "lower-case letters, digits and `-`",
    r"^\.?[^./:#\s][^/:#\s]*(/\.?[^./:#\s][^/:#\s]*)*$": "a relative path, without `..`",
    r"^[0-9]{8}T[0-9]{6}Z$": "a time such as 20260901T000000Z",
    r"^[a-z]+$": "a word of lower-case letters",
    r"^[a-z0-9][a-z0-9+.-]+$": "the name of a package",
    r"^[a-z][a-z0-9./-]*$": "lower-case letters, digits and `./-`",
    r"^[a-z0-9][a-z0-9+.-]+(=\S+)?$": "NAME or NAME=VERSION",
    r"^[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$": "the name of an image; an "
    "axis or an argument is none: write a value of the pin for each",
    r"^3\.\d+$": "3.N",
    r"^[0-9a-f]{40}$": "40 hex digits",
    r"^2\.[1-9][0-9]$": "2.NN",
    r"^((https|http|git)://[^/@#\s]+|ssh://([^/:@#\s]+@)?[^/@#\s]+)/[^#\s]+$": "an address with a "
    "scheme, without a password",
    r"^[0-9a-f]{7,40}$": "7 to 40 hex digits",
    r"^[0-9][A-Za-z0-9.]*(\+[a-z0-9.]+)?$": "a version such as 1.2 or 1.2+x",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*\])?==[^\s;,*]+$": "exact",
    r"^https?://[^\s/]+\S*[^\s/]$": "https://HOST/PATH, without a `/` at its end",
    r"^[a-z0-9][a-z0-9_-]*$": "lower-case letters, digits, `_` and `-`",
    r"^https?://[^/@#?\s]+/[^#\s]+$": "https://HOST/PATH",
    r"^[0-9a-f]{64}$": "64 hex digits",
    r"^[A-Za-z0-9_][A-Za-z0-9._+~-]{0,199}$": "the name of a file: letters, digits and `._+~-`",
    r"^[a-z0-9_]+$": "lower-case letters, digits and `_`",
    r"^[^\x00-\x1f\x7f]+$": "on one line, and not empty",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "the name of a variable: letters, digits and `_`",
    r"^/[^\x00-\x1f\x7f:,]+$": "a path from / on, without `:` and `,`",
    r"^[1-9][0-9]*[kmg]?$": "a number with k, m or g behind it",
    r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$": "a path from / on, of letters, digits and `._+-`",
    r"^([a-z0-9]|\{[a-z0-9_-]+\})+([A-Za-z0-9._/:@-]|\{[a-z0-9_-]+\})*$": "letters, digits and "
    "`._/:@-`, and {AXIS}",
    r"^[0-9]+(\.[0-9]+)?(MB|GB|TB)$": "a number with MB, GB or TB behind it",
    r"^(\d{1,9}(\.\d{1,9})*|\{[a-z0-9_-]+\})$": "X or X.Y, or {AXIS}",
    r"^[a-z0-9]+(-[a-z0-9]+)*$": "lower-case letters, digits, and single `-` between them",
    r"^[A-Za-z_][A-Za-z0-9_.-]*$": "letters, digits and `_.-`",
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$": "USER or USER:GROUP",
    r"^([a-z0-9]|\{[a-z0-9_-]+\})+([._/-]([a-z0-9]|\{[a-z0-9_-]+\})+)*$": "lower-case letters, "
    "digits, single `._/-` between them, and {AXIS}; without a tag",
    r"^[^\s\x00-\x1f\x7f]+$": "one word, without a space",
    r"^[a-z0-9][a-z0-9._:/-]*$": "REGISTRY/REPOSITORY in lower-case letters",
    r"^[a-z][a-z0-9._-]{0,127}$": "lower-case letters, digits and `._-`",
    r"^[A-Za-z0-9][A-Za-z0-9._:%-]{0,252}$": "a host name or an IP address",
    r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$": "a login name: letters, digits and `_.-`",
    r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,14}$": "an interface: at most 15 letters, digits and `._:-`",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(:[0-9]{1,3})?$": "DEVICE or DEVICE:PORT",
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "at most 64 letters, digits and `._-`",
    r"^[^/\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$": "a relative path",
    r"^https?://[^\s#]+$": "https://HOST/PATH",
    r"^/.+[^/]$": "a path from / on, without a `/` at its end",
    r"^[0-9a-f]{64}$|^missing$": "64 hex digits, or `missing`",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "the name of a project: letters, digits and `._-`",
    r"^[246][0-7]{3}$": "a mode with setuid, setgid or sticky bit, such as 4755",
}
"""The patterns of the models, in words."""


def advice(text: str, pattern: str) -> str | None:
    """What to do about a value of a wrong form that stands for something else."""
    found = (todo for sign, todo in REQUIREMENTS if "==" in pattern and re.search(sign, text))
    return next((todo.format(text) for todo in found), None)


def meant(text: str, pattern: str) -> str | None:
    """The likeliest other way to write ``text`` that has the form of ``pattern``."""
    if len(text) > 300:
        return None
    bare = without_login(text)
    for guess in (without_login, *GUESSES):
        other = guess(bare)
        if other and other != text and re.search(pattern, other):
            return other
    return None
