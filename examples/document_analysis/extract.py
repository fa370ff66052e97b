"""Read a document of any supported format as plain text.

``read_text`` is the door; one private function for each format stands behind it. All are pure: bytes in, text out, no
network, no clock. Every refusal is a ``DocumentError`` whose text is one sentence that names the file and the cause.

The text keeps what a reader needs to tell documents apart: headings stay on their own lines, a table row becomes one
line with its cells parted by ``|``, an e-mail starts with its headers and ends with its readable attachments.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

#: The largest file that is read, in bytes. A bigger one is refused before it is parsed.
BYTES_MAX = 10 * 1024 * 1024
#: The largest content of a Word file once unpacked, in bytes; a small archive can unpack to gigabytes.
UNPACKED_BYTES_MAX = 100 * 1024 * 1024
#: The most pages of a PDF that are read. pypdf takes about 20 ms for a page.
PAGES_MAX = 500
#: How deep e-mails inside e-mails are followed.
DEPTH_MAX = 3

FORMATS = (".txt", ".md", ".html", ".htm", ".eml", ".pdf", ".docx")


class DocumentError(ValueError):
    """A document cannot be read. The text names the file and the cause; another attempt will not help."""


def read_text(source: str | Path | bytes, name: str | None = None) -> str:
    """Return the text of a document.

    ``source`` is a path or the bytes themselves. ``name`` is the file name that tells the format and that errors
    show; a path brings its own. Raises ``DocumentError`` when the file is missing, too large, empty, of an unknown
    format, damaged or encrypted, or when it holds no text.
    """
    shown = name or (str(source) if isinstance(source, str | Path) else "the document")
    data = source if isinstance(source, bytes) else _load(Path(source), shown)
    return _read(data, shown, depth=0)


def _load(path: Path, name: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > BYTES_MAX:
            raise _too_large(name, size)
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{name} cannot be opened: {error.strerror or error}.") from error


def _read(data: bytes, name: str, depth: int) -> str:
    suffix = PurePath(name).suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise DocumentError(f"{name} has the unknown format {suffix or '(no extension)'}; known are {known}.")
    if len(data) > BYTES_MAX:
        raise _too_large(name, len(data))
    if not data.strip():
        raise DocumentError(f"{name} is empty.")
    if suffix == ".pdf":
        text = _pdf(data, name)
    elif suffix == ".docx":
        text = _docx(data, name)
    elif suffix == ".eml":
        text = _eml(data, name, depth)
    elif suffix in (".html", ".htm"):
        text = _html(_decode(data, name))
    else:
        text = _decode(data, name)
    text = tidy(text)
    if not text:
        raise DocumentError(f"{name} holds no text; if it is a scan, run text recognition on it first.")
    return text


def _too_large(name: str, size: int) -> DocumentError:
    return DocumentError(f"{name} is too large: {size:,} bytes, and at most {BYTES_MAX:,} are read.")


def tidy(text: str) -> str:
    """Trim lines, shorten runs of blanks and of empty lines, and drop control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ").replace("\xad", "")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)
    lines = (re.sub(r"[ \t]{3,}", "  ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


# -- text ------------------------------------------------------------------------------------------------------------


def _decode(data: bytes, name: str) -> str:
    """Decode by the byte order mark, else as UTF-8, else as Windows-1252, which old tools still write."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise DocumentError(f"{name} is not text: its {encoding} is broken.") from error
    if b"\x00" in data:
        raise DocumentError(f"{name} is not text: it holds zero bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


# -- HTML ------------------------------------------------------------------------------------------------------------

_HIDDEN = ("script", "style", "nav", "template", "noscript", "head")
_LINES = "address article aside br dd div dt figure footer form header hr li main section tr".split()
_PARAGRAPHS = "blockquote dl h1 h2 h3 h4 h5 h6 ol p pre table ul".split()
#: Private-use characters that stand for line ends while the markup's own white space is folded.
_LINE, _PARAGRAPH = "\ue000", "\ue001"


def _html(markup: str) -> str:
    soup = _extra("bs4").BeautifulSoup(markup, "html.parser")
    for tag in soup.find_all(_HIDDEN):
        tag.decompose()
    for term in soup.find_all("dt"):
        value = term.find_next_sibling()
        if value is not None and value.name == "dd":
            term.append(": " + " ".join(value.get_text().split()))
            value.decompose()
    for row in soup.find_all("tr"):
        cells = [" ".join(cell.get_text(" ").split()) for cell in row.find_all(["td", "th"])]
        row.clear()
        row.append(" | ".join(cells))
    for tag in soup.find_all("pre"):
        tag.string = tag.get_text().replace("\n", _LINE)
    for tag in soup.find_all([*_LINES, *_PARAGRAPHS]):
        mark = _PARAGRAPH if tag.name in _PARAGRAPHS else _LINE
        tag.insert_before(mark)
        tag.insert_after(mark)
    text = re.sub(r"\s+", " ", soup.get_text())
    text = re.sub(rf"[ {_LINE}{_PARAGRAPH}]*{_PARAGRAPH}[ {_LINE}{_PARAGRAPH}]*", "\n\n", text)
    return re.sub(rf" *{_LINE}[ {_LINE}]*", "\n", text)


# -- e-mail ----------------------------------------------------------------------------------------------------------


def _eml(data: bytes, name: str, depth: int) -> str:
    message = message_from_bytes(data, policy=policy.default)
    if not isinstance(message, EmailMessage) or not (message["From"] or message["Subject"]):
        raise DocumentError(f"{name} is not an e-mail: it has neither a From nor a Subject header.")
    return _message(message, name, depth)


def _message(message: EmailMessage, name: str, depth: int) -> str:
    head = [f"{key}: {message[key]}" for key in ("From", "To", "Cc", "Date", "Subject") if message[key]]
    body = _content(message.get_body(("plain",)))
    if not body.strip():
        body = _html(_content(message.get_body(("html",))))
    parts = ["\n".join(head), body]
    attached = (part for part in message.iter_attachments() if isinstance(part, EmailMessage))
    parts += [_attachment(part, name, depth) for part in attached]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _content(part: object) -> str:
    if not isinstance(part, EmailMessage):
        return ""
    try:
        return str(part.get_content())
    except (LookupError, ValueError):  # An unknown charset or a broken encoding: the bytes are still worth a look.
        payload = part.get_payload(decode=True)
        return payload.decode("utf-8", errors="replace") if isinstance(payload, bytes) else ""


def _attachment(part: EmailMessage, name: str, depth: int) -> str:
    """Read an attachment where its format is known; where it is not, or it is damaged, say that it is there."""
    title = f"Attachment: {part.get_filename() or part.get_content_type()}"
    if depth >= DEPTH_MAX:
        return title
    if part.get_content_type() == "message/rfc822":
        inner = part.get_content()
        return f"{title}\n{_message(inner, name, depth + 1)}" if isinstance(inner, EmailMessage) else title
    if part.get_content_maintype() == "text":
        text = _content(part)
        return f"{title}\n{_html(text) if part.get_content_subtype() == 'html' else text}"
    payload = part.get_payload(decode=True)
    if isinstance(payload, bytes) and PurePath(part.get_filename() or "").suffix.lower() in FORMATS:
        try:
            return f"{title}\n{_read(payload, part.get_filename() or '', depth + 1)}"
        except DocumentError as error:
            return f"{title} (not read: {error})"
    return title


# -- PDF -------------------------------------------------------------------------------------------------------------


def _pdf(data: bytes, name: str) -> str:
    pypdf = _extra("pypdf")
    if b"%PDF-" not in data[:1024]:
        raise DocumentError(f"{name} is not a PDF: its first bytes are not %PDF-.")
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        # An owner's password restricts printing only; such files open with the empty user password.
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(f"{name} is an encrypted PDF; remove its password and try again.")
        if len(reader.pages) > PAGES_MAX:
            raise DocumentError(f"{name} is too large: {len(reader.pages)} pages, and at most {PAGES_MAX} are read.")
        return "\n\n".join(_page(page) for page in reader.pages)
    except DocumentError:
        raise
    except Exception as error:
        # pypdf meets damage with many kinds of error, KeyError and RecursionError among them.
        raise DocumentError(f"{name} is a damaged PDF: {_reason(error)}.") from error


def _page(page: Any) -> str:
    """The text of a page with its columns kept apart, so that a row of a table stays one line."""
    text = page.extract_text(extraction_mode="layout", layout_mode_space_vertically=False) or page.extract_text()
    lines = text.replace("\x7f", "•").splitlines()  # 0x7f is how the standard fonts encode a bullet.
    return "\n".join(re.sub(r"(?<=\S) {3,}(?=\S)", " | ", line) for line in lines)


# -- Word ------------------------------------------------------------------------------------------------------------


def _docx(data: bytes, name: str) -> str:
    docx = _extra("docx")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > UNPACKED_BYTES_MAX:
                raise DocumentError(
                    f"{name} is too large: it unpacks to {size:,} bytes, and at most {UNPACKED_BYTES_MAX:,} are read."
                )
        document = docx.Document(io.BytesIO(data))
        return "\n".join(_blocks(document))
    except DocumentError:
        raise
    except zipfile.BadZipFile as error:
        if data.startswith(b"\xd0\xcf\x11\xe0"):
            raise DocumentError(f"{name} is an old or encrypted Word file; save it as an unprotected .docx.") from error
        raise DocumentError(f"{name} is not a Word document: it is not a zip archive.") from error
    except Exception as error:
        # python-docx meets damage with KeyError, XMLSyntaxError and others.
        raise DocumentError(f"{name} is a damaged Word document: {_reason(error)}.") from error


def _blocks(document: Any) -> Iterator[str]:
    """Headings, paragraphs and table rows in reading order."""
    for block in document.iter_inner_content():
        if hasattr(block, "rows"):
            for row in block.rows:
                yield " | ".join(" ".join(cell.text.split()) for cell in row.cells)
            yield ""
        elif block.style is not None and block.style.name.startswith(("Heading", "Title")):
            yield f"\n{block.text}\n"
        else:
            yield block.text


def _reason(error: Exception) -> str:
    """The first line of a foreign error, without its full stop, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        hint = "pip install 'ziggurat-agents[documents]'"
        raise DocumentError(f"This format needs the Python package {module}; install it with: {hint}") from error
