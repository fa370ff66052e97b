"""Build the PDF, Word and e-mail documents of the example from their sources.

Each file ``sources/NAME.EXT.md`` becomes ``documents/NAME.EXT``. The sources use a small part of Markdown: headings,
bullets, table rows that start with ``|``, and ``---page---`` for a new page; an e-mail source starts with its headers.
The text, Markdown and HTML documents have no source: they are written by hand.

The output is the same, byte for byte, on every run: dates and boundaries are fixed and archives carry no clock. So a
changed document in a diff means that its source changed. It needs two tools that the example itself does not:

    pip install reportlab python-docx
    python make_documents.py
"""

from __future__ import annotations

import base64
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
SOURCES = HERE / "sources"
DOCUMENTS = HERE / "documents"

#: A date for metadata fields that must not hold the time of the build.
EPOCH = datetime(2025, 7, 1, 12, 0, 0, tzinfo=UTC)

#: One part of a source: its style and its text, or the rows of a table.
Block = tuple[str, str] | tuple[str, list[list[str]]]


def blocks(source: str) -> Iterator[Block]:
    """Cut a source into headings, paragraphs, bullets, tables and page breaks, in reading order."""
    rows: list[list[str]] = []
    paragraph: list[str] = []
    for line in [*source.splitlines(), ""]:
        is_row = line.startswith("|")
        if rows and not is_row:
            yield "table", rows
            rows = []
        mark = re.match(r"(#{1,3}|-|\d+\.) (.+)", line)
        if paragraph and (is_row or mark or not line or line == "---page---"):
            yield "text", "\n".join(paragraph)
            paragraph = []
        if is_row:
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif line == "---page---":
            yield "page", ""
        elif mark and mark[1].startswith("#"):
            yield f"h{len(mark[1])}", mark[2]
        elif mark:
            yield "item", ("• " if mark[1] == "-" else f"{mark[1]} ") + mark[2]
        elif line:
            paragraph.append(line)


def build_pdf(source: str) -> bytes:
    """Set a source as an A4 PDF with real, selectable text."""
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

    styles = getSampleStyleSheet()
    names = {"h1": "Title", "h2": "Heading2", "h3": "Heading3", "text": "BodyText", "item": "BodyText"}
    grid = TableStyle([("GRID", (0, 0), (-1, -1), 0.4, colors.grey), ("VALIGN", (0, 0), (-1, -1), "TOP")])
    flow: list[object] = []
    for kind, content in blocks(source):
        if kind == "page":
            flow.append(PageBreak())
        elif isinstance(content, list):
            # A short cell stays a string, so that the table makes its columns as wide as they need to be.
            body = styles["BodyText"]
            cells = [[Paragraph(escape(c), body) if len(c) > 60 else c for c in row] for row in content]
            flow += [Table(cells, style=grid, hAlign="LEFT"), Spacer(1, 8)]
        else:
            flow.append(Paragraph(escape(content).replace("\n", "<br/>"), styles[names[kind]]))
    out = io.BytesIO()
    title = next((text for kind, text in blocks(source) if kind == "h1"), "")
    SimpleDocTemplate(out, pagesize=A4, invariant=1, title=title).build(flow)
    return out.getvalue()


def build_docx(source: str) -> bytes:
    """Set a source as a Word document with real headings and tables."""
    import docx

    document = docx.Document()
    properties = document.core_properties
    properties.author = ""
    properties.created = properties.modified = EPOCH
    for kind, content in blocks(source):
        if kind == "page":
            document.add_paragraph().paragraph_format.page_break_before = True
        elif isinstance(content, list):
            table = document.add_table(rows=0, cols=max(len(row) for row in content), style="Table Grid")
            for row in content:
                for cell, text in zip(table.add_row().cells, row, strict=False):
                    cell.text = text
        elif kind.startswith("h"):
            document.add_heading(content, level=int(kind[1]))
        elif kind == "item" and content.startswith("• "):
            document.add_paragraph(content[2:], style="List Bullet")
        else:
            document.add_paragraph(content)
    out = io.BytesIO()
    document.save(out)
    return without_clock(out.getvalue())


def without_clock(archive: bytes) -> bytes:
    """Write a zip archive again with one fixed date on every member."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name, EPOCH.timetuple()[:6]), old.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def build_eml(source: str, name: str) -> bytes:
    """Set a source as a MIME message: the parts and the transfer encoding that its headers ask for."""
    head, _, rest = source.partition("\n\n")
    headers = dict(line.split(": ", 1) for line in head.splitlines())
    encoding, parts = headers.pop("Encoding"), headers.pop("Parts")
    sections = re.split(r"^---(html|attachment: .+)---\n", rest, flags=re.MULTILINE)
    body, extras = sections[0], list(zip(sections[1::2], sections[2::2], strict=True))
    message = EmailMessage(policy=policy.SMTP)
    for key, value in headers.items():
        message[key] = value
    message["Message-ID"] = f"<{name}@mail.example>"
    message.set_content(body, cte=encoding)
    if "html" in parts:
        html = next((text for mark, text in extras if mark == "html"), html_twin(body))
        message.add_alternative(html, subtype="html", cte=encoding)
    for mark, text in extras:
        if mark.startswith("attachment: "):
            filename, content_type = mark.removeprefix("attachment: ").split("; ")
            main, sub = content_type.split("/")
            message.add_attachment(text.encode(), maintype=main, subtype=sub, filename=filename)
    for number, part in enumerate(part for part in message.walk() if part.is_multipart()):
        part.set_boundary(f"=_{base64.b16encode(name.encode()).decode()[:24]}_{number}")
    return message.as_bytes()


def html_twin(body: str) -> str:
    """The same message as an HTML page, as mail programs send it beside the plain text."""
    paragraphs = (f"<p>{escape(part).replace(chr(10), '<br>')}</p>" for part in body.strip().split("\n\n"))
    return "<html><body>\n" + "\n".join(paragraphs) + "\n</body></html>\n"


def main() -> None:
    """Build every document that has a source."""
    for path in sorted(SOURCES.glob("*.md")):
        name = path.name.removesuffix(".md")
        source = path.read_text(encoding="utf-8")
        builders = {".pdf": build_pdf, ".docx": build_docx}
        suffix = Path(name).suffix
        data = build_eml(source, Path(name).stem) if suffix == ".eml" else builders[suffix](source)
        (DOCUMENTS / name).write_bytes(data)
        sys.stdout.write(f"{name}: {len(data):,} bytes\n")


if __name__ == "__main__":
    main()
