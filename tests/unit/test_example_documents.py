"""The document analysis example: extraction of every format, its refusals, the rules, the prompts, the score and the workflow."""

from __future__ import annotations

import datetime as dt
import io
import zipfile
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import docx
import pypdf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.document_analysis import extract, fields, prompts, score, workflow
from examples.document_analysis.extract import DocumentError, read_text
from examples.document_analysis.samples import SAMPLES
from examples.document_analysis.schemas import FIELDS, Kind, Label, Report, TicketFields, Value
from examples.document_analysis.score import Score, Truth
from ziggurat import llm

HERE = Path(extract.__file__).parent
DOCUMENTS = HERE / "documents"
TRUTHS = score.load_truth(HERE / "truth.jsonl")
by_file = pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.file)


# -- the corpus ------------------------------------------------------------------------------------------------------


def test_every_document_has_its_truth_and_every_kind_and_format_is_there() -> None:
    assert sorted(truth.file for truth in TRUTHS) == sorted(path.name for path in DOCUMENTS.iterdir())
    assert len(TRUTHS) >= 24
    assert {truth.kind for truth in TRUTHS} == set(Kind)
    assert {Path(truth.file).suffix for truth in TRUTHS} == {".txt", ".md", ".html", ".eml", ".pdf", ".docx"}
    for truth in TRUTHS:
        FIELDS[truth.kind].model_validate(truth.fields)


@by_file
def test_text_holds_the_passages_that_a_reader_sees(truth: Truth) -> None:
    text = read_text(DOCUMENTS / truth.file)
    folded = " ".join(text.split())
    assert len(truth.phrases) >= 2
    for phrase in truth.phrases:
        assert phrase in folded
    assert 150 <= len(folded.split()) <= 900


@by_file
def test_bytes_and_path_give_the_same_text(truth: Truth) -> None:
    path = DOCUMENTS / truth.file
    assert read_text(path.read_bytes(), truth.file) == read_text(path)


def test_tables_keep_their_rows() -> None:
    assert "Due date | 2 April 2025" in read_text(DOCUMENTS / "NW-20417.pdf")
    assert "P. Lowe | Technician | 14.0 | 72.00 | 1,008.00" in read_text(DOCUMENTS / "hallam-2025-118.docx")
    assert "Payment due | April 10, 2025" in read_text(DOCUMENTS / "2025-0311-oliveira.html")


# -- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfna\xc3\xafve", "naïve"),
        ("naïve".encode("utf-16"), "naïve"),
        (b"na\xefve \x80 5", "naïve € 5"),
        (b"one\r\n\r\n\r\n\r\ntwo\r\n", "one\n\ntwo"),
    ],
    ids=["utf-8 with mark", "utf-16", "windows-1252", "line ends"],
)
def test_text_of_old_and_new_encodings(data: bytes, text: str) -> None:
    assert read_text(data, "note.txt") == text


def test_html_drops_what_no_reader_sees_and_keeps_lines() -> None:
    page = b"""<html><head><title>T</title><style>p{}</style></head><body><nav>Menu</nav><script>x()</script>
    <h1>Head
    line</h1><p>One <b>bold</b>\n word.<br>Next.</p><dl><dt>Plan</dt><dd>Free</dd></dl><pre>a\n b</pre></body></html>"""
    assert read_text(page, "page.html") == "Head line\n\nOne bold word.\nNext.\n\nPlan: Free\n\na\nb"


def message(**headers: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "Ann <ann@a.example>", "bob@b.example", "Grüße"
    for name, value in headers.items():
        mail[name] = value
    return mail


def test_mail_with_only_html_is_read_from_it() -> None:
    mail = message()
    mail.set_content("<p>Only <i>this</i></p>", subtype="html")
    assert read_text(mail.as_bytes(), "m.eml") == "From: Ann <ann@a.example>\nTo: bob@b.example\nSubject: Grüße\n\nOnly this"


def test_mail_attachments_are_read_or_named() -> None:
    inner = message()
    inner.set_content("The forwarded words.")
    mail = message()
    mail.set_content("See attached.")
    mail.add_attachment((DOCUMENTS / "t-marchetti.pdf").read_bytes(), maintype="application", subtype="pdf", filename="cv.pdf")
    mail.add_attachment(b"no pdf", maintype="application", subtype="pdf", filename="broken.pdf")
    mail.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="photo.png")
    mail.add_attachment(inner)
    text = read_text(mail.as_bytes(), "m.eml")
    assert "Attachment: cv.pdf\nTOMMASO MARCHETTI" in text
    assert "Attachment: broken.pdf (not read: broken.pdf is not a PDF: its first bytes are not %PDF-.)" in text
    assert "Attachment: photo.png" in text
    assert "The forwarded words." in text


def test_mails_inside_mails_are_followed_to_a_depth() -> None:
    mail = message()
    mail.set_content("The innermost words.")
    for _ in range(extract.DEPTH_MAX + 2):
        outer = message()
        outer.set_content("Around it.")
        outer.add_attachment(mail)
        mail = outer
    text = read_text(mail.as_bytes(), "m.eml")
    assert "Around it." in text
    assert "The innermost words." not in text


def test_mail_with_an_unknown_charset_is_still_read() -> None:
    raw = b"From: a@a.example\nSubject: x\nContent-Type: text/plain; charset=klingon\n\nStill words.\n"
    assert "Still words." in read_text(raw, "m.eml")


# -- refusals --------------------------------------------------------------------------------------------------------


def encrypted_pdf() -> bytes:
    writer = pypdf.PdfWriter()
    writer.append(io.BytesIO((DOCUMENTS / "t-marchetti.pdf").read_bytes()))
    writer.encrypt("secret", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def scanned_pdf() -> bytes:
    writer = pypdf.PdfWriter()
    writer.add_blank_page(width=100, height=100)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def word_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * (extract.UNPACKED_BYTES_MAX + 1))
    return out.getvalue()


def zip_without_word() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "make", "cause"),
    [
        ("a.pdf", encrypted_pdf, "is an encrypted PDF; remove its password"),
        ("a.pdf", lambda: b"<html>", "is not a PDF"),
        ("a.pdf", lambda: b"%PDF-1.7 and nothing more", "is a damaged PDF"),
        ("a.pdf", scanned_pdf, "holds no text; if it is a scan"),
        ("a.docx", lambda: b"plain words", "is not a Word document"),
        ("a.docx", lambda: b"\xd0\xcf\x11\xe0" + b"x" * 600, "is an old or encrypted Word file"),
        ("a.docx", zip_without_word, "is a damaged Word document"),
        ("a.docx", word_bomb, "is too large: it unpacks to"),
        ("a.eml", lambda: b"just words\n", "is not an e-mail"),
        ("a.txt", lambda: b"", "is empty"),
        ("a.txt", lambda: b" \n\t ", "is empty"),
        ("a.txt", lambda: b"MZ\x00\x01", "is not text"),
        ("a.txt", lambda: b"\xff\xfea", "is not text"),
        ("a.html", lambda: b"<script>x()</script>", "holds no text"),
        ("a.txt", lambda: b"x" * (extract.BYTES_MAX + 1), "is too large"),
        ("a.xls", lambda: b"x", "has the unknown format .xls; known are .txt"),
        ("README", lambda: b"x", "has the unknown format (no extension)"),
    ],
)
def test_bad_documents_are_refused_in_one_sentence(name: str, make: Any, cause: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_text(make(), name)
    said = str(caught.value)
    assert said.startswith(name)
    assert cause in said
    assert "\n" not in said


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none\.txt cannot be opened: No such file"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DocumentError, match=r"folder\.txt cannot be opened"):
        read_text(tmp_path / "folder.txt")


def test_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    with path.open("wb") as file:
        file.truncate(extract.BYTES_MAX + 1)
    with pytest.raises(DocumentError, match="is too large"):
        read_text(path)


def test_pdf_of_too_many_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "PAGES_MAX", 1)
    with pytest.raises(DocumentError, match="2 pages, and at most 1 are read"):
        read_text(DOCUMENTS / "NW-20417.pdf")


@given(
    data=st.binary(max_size=300),
    suffix=st.sampled_from(extract.FORMATS),
    head=st.sampled_from([b"", b"%PDF-1.4\n", b"PK\x03\x04"]),
)
def test_any_bytes_give_text_or_a_refusal(data: bytes, suffix: str, head: bytes) -> None:
    try:
        assert read_text(head + data, f"any{suffix}").strip()
    except DocumentError as refusal:
        assert str(refusal).startswith(f"any{suffix}")  # noqa: PT017 - either outcome is right


@given(position=st.integers(0, 4000), byte=st.integers(0, 255), file=st.sampled_from(["NW-20417.pdf", "okonkwo-cv.docx"]))
def test_damaged_files_give_text_or_a_refusal(position: int, byte: int, file: str) -> None:
    data = bytearray((DOCUMENTS / file).read_bytes())
    data[position] = byte
    try:
        assert read_text(bytes(data), file)
    except DocumentError as refusal:
        assert str(refusal).startswith(file)  # noqa: PT017 - either outcome is right


def test_word_file_keeps_headings_and_tables_in_order() -> None:
    document = docx.Document()
    document.add_heading("Title", 0)
    document.add_paragraph("First.")
    row = document.add_table(rows=1, cols=2).rows[0]
    row.cells[0].text, row.cells[1].text = "Left", "Right\nside"
    document.add_paragraph("Last.")
    out = io.BytesIO()
    document.save(out)
    assert read_text(out.getvalue(), "a.docx") == "Title\n\nFirst.\nLeft | Right side\n\nLast."


# -- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("on 2025-04-10 and 3 March 2025", [dt.date(2025, 4, 10), dt.date(2025, 3, 3)]),
        ("March 11, 2025", [dt.date(2025, 3, 11)]),
        ("1st May 2024, 14/02/2025, 12/31/2024", [dt.date(2024, 5, 1), dt.date(2025, 2, 14), dt.date(2024, 12, 31)]),
        ("31 February 2025, version 3.8.1, 13/13/2024", []),
    ],
)
def test_dates(text: str, found: list[dt.date]) -> None:
    assert fields.dates(text) == found


@pytest.mark.parametrize(
    ("text", "value", "code"),
    [("EUR 6,123.33", 6123.33, "EUR"), ("$764.52", 764.52, "USD"), ("GBP  655.98", 655.98, "GBP"), ("none", None, None)],
)
def test_amounts(text: str, value: float | None, code: str | None) -> None:
    assert fields.amount(text) == value
    assert fields.currency(text) == code


@pytest.mark.parametrize(
    ("text", "length"), [("24 months", 24), ("two years", 24), ("twelve (12) months", 12), ("a while", None), ("1 year", 12)]
)
def test_months(text: str, length: int | None) -> None:
    assert fields.months(text) == length


def test_rules_read_most_fields_of_the_corpus() -> None:
    asked = right = 0
    for truth in TRUTHS:
        values = fields.as_values(fields.read_fields(truth.kind, read_text(DOCUMENTS / truth.file)))
        asked += len(truth.fields)
        right += sum(score.same(values[name], value) for name, value in truth.fields.items())
    assert right / asked >= 0.95


@pytest.mark.parametrize("kind", Kind)
@given(text=st.text(max_size=400))
def test_rules_bear_any_text(kind: Kind, text: str) -> None:
    assert isinstance(fields.read_fields(kind, text), FIELDS[kind])


@by_file
def test_rules_of_every_kind_bear_every_document(truth: Truth) -> None:
    text = read_text(DOCUMENTS / truth.file)
    for kind in Kind:
        assert isinstance(fields.read_fields(kind, text), FIELDS[kind])


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_samples_hold_three_of_each_kind_and_none_of_the_corpus() -> None:
    assert {kind: sum(sample.kind == kind for sample in SAMPLES) for kind in Kind} == dict.fromkeys(Kind, 3)
    corpus = " ".join(read_text(DOCUMENTS / truth.file) for truth in TRUTHS)
    assert not [line for sample in SAMPLES for line in sample.text.splitlines() if len(line) > 40 and line in corpus]


def test_kind_is_asked_with_examples_of_different_kinds_and_without_the_file_name() -> None:
    for truth in TRUTHS:
        messages = prompts.classify(read_text(DOCUMENTS / truth.file))
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert len({Label.model_validate_json(message["content"]).kind for message in messages[2::2]}) == prompts.EXAMPLES
        assert Path(truth.file).name not in prompts.of(messages)


def test_prompts_are_bounded() -> None:
    text = "A word. " * 100_000
    for messages in (prompts.classify(text), prompts.summarize(text)):
        assert len(prompts.of(messages)) < 3000


TEXT = """From: Ann Lee <ann@a.example>
To: help@b.example
Subject: Fox Reader loses my pages

Since Monday the Fox Reader on my tablet loses pages when I turn it. I paid 20 euros for it.
Could you look into this before the end of May?
"""


@pytest.mark.parametrize(
    ("summary", "kept"),
    [
        ("Ann's Fox Reader loses pages on her tablet since Monday.", True),
        ("Ann's Fox Reader loses pages on her tablet in Nigeria.", False),
        ("Ann paid 30 euros for the Fox Reader on her tablet.", False),
        ("Ann's magnificent umbrella company acquired several competitors.", False),
        ("Pages of the Fox Reader on her tablet and", False),
        ("Pages pages pages pages pages pages pages on the tablet.", False),
        ("Since Monday the Fox Reader loses pages, since Monday the tablet loses pages.", False),
        ("Since Monday I lose pages of the Fox Reader.", False),
        ("Fox Reader.", False),
        ("", False),
    ],
)
def test_summaries_must_stand_in_the_document(summary: str, kept: bool) -> None:
    assert prompts.grounded(summary, TEXT) is kept


def test_a_refused_summary_is_replaced_by_the_sentence_that_comes_nearest() -> None:
    quoted = prompts.quotation("The tablet in Nigeria loses pages.", TEXT)
    assert quoted == ("Fox Reader loses my pages: Since Monday the Fox Reader on my tablet loses pages when I turn it.")
    assert prompts.quotation("Anything.", "A heading\n\nA | B\n1 | 2") == "A heading"


@by_file
def test_every_document_can_be_quoted(truth: Truth) -> None:
    text = read_text(DOCUMENTS / truth.file)
    quoted = prompts.quotation(truth.summary, text)
    assert 4 <= len(quoted.split()) <= 80
    assert "\n" not in quoted


def test_first_sentence() -> None:
    assert prompts.first_sentence("Summary: One thing happened on Monday. Then another.") == "One thing happened on Monday."
    assert prompts.first_sentence("no end of it") == "no end of it"


def test_open_fields_are_asked_with_names_of_the_document_as_the_choices() -> None:
    found = fields.read_fields(Kind.TICKET, TEXT)
    asked = prompts.questions(Kind.TICKET, TEXT, found)
    assert asked is not None
    properties = asked[1].model_json_schema()["properties"]
    assert set(properties) == {"product", "urgency"}
    assert "Fox Reader" in properties["product"]["enum"]
    assert "Ann Lee" not in properties["product"]["enum"]
    assert properties["urgency"]["enum"] == ["low", "normal", "high", "urgent"]
    complete = TicketFields(customer="Ann Lee", email="ann@a.example", product="Fox Reader", urgency="low")
    assert prompts.questions(Kind.TICKET, TEXT, complete) is None


# -- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "true", "agree"),
    [
        ("Nordwind Logistics", "Nordwind Logistics GmbH", True),
        ("NORDWIND LOGISTICS GMBH", "Nordwind Logistics GmbH", True),
        ("Nordwind", "Nordwind Logistics GmbH", False),
        ("a@b.example", "a@b.example", True),
        ("a@c.example", "a@b.example", False),
        ("2025-04-02", "2025-04-02", True),
        ("2025-02-04", "2025-04-02", False),
        (6123.33, 6123.33, True),
        (6123.34, 6123.33, False),
        ("6123.33", 6123.33, False),
        (None, "x", False),
        ("x", None, False),
        (None, None, True),
    ],
)
def test_same(found: Value, true: Value, agree: bool) -> None:
    assert score.same(found, true) is agree


def truth_of(file: str, kind: Kind) -> Truth:
    return Truth(file=file, kind=kind, fields={"a": "one", "b": 2}, summary="s", keywords=["Red Fox", "hen"], phrases=["p", "q"])


def test_score_of_one_report() -> None:
    truth = truth_of("a.txt", Kind.INVOICE)
    report = Report(document="a.txt", kind=Kind.INVOICE, fields={"a": "one", "b": 3}, summary="A red  fox, alone.")
    assert score.score(report, truth) == Score(kind=1.0, fields=0.5, summary=0.5)
    wrong = report.model_copy(update={"kind": Kind.PRESS})
    assert score.score(wrong, truth) == Score(kind=0.0, fields=0.0, summary=0.5)


def test_table_counts_missing_reports_as_wrong() -> None:
    truths = [truth_of("a.txt", Kind.INVOICE), truth_of("b.txt", Kind.INVOICE), truth_of("c.txt", Kind.PRESS)]
    reports = [
        Report(document="a.txt", kind=Kind.INVOICE, fields={"a": "one", "b": 2}, summary="red fox hen"),
        Report(document="c.txt", kind=Kind.PRESS, fields={}, summary=""),
        Report(document="unknown.txt", kind=Kind.PRESS, fields={}, summary=""),
    ]
    assert score.table(reports, truths) == [
        ("invoice", 2, Score(0.5, 0.5, 0.5)),
        ("press release", 1, Score(1.0, 0.0, 0.0)),
        ("all", 3, Score(2 / 3, 1 / 3, 1 / 3)),
    ]
    assert score.table([], []) == [("all", 0, Score(0.0, 0.0, 0.0))]


# -- the workflow, as plain functions --------------------------------------------------------------------------------


async def test_workflow_reports_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def parse(schema: Any, prompt: Any, **options: Any) -> Any:
        asked.append(schema.__name__)
        assert options["model"] == workflow.MODEL
        return schema(kind=Kind.TICKET) if schema is Label else schema(product="Paperlark Studio")

    async def text(prompt: Any, **options: Any) -> str:
        asked.append("text")
        return "A pottery was charged twice for Paperlark Studio in April. More."

    monkeypatch.setattr(llm, "parse", parse)
    monkeypatch.setattr(llm, "text", text)
    monkeypatch.setattr(prompts, "_choices", lambda annotation: [])
    report = await workflow.analyze(str(DOCUMENTS / "case-77120.eml"))
    assert sorted(asked) == ["Answers", "Label", "text"]
    assert report.document == "case-77120.eml"
    assert report.kind == Kind.TICKET
    assert report.fields == {
        "customer": "Rosalind Quaye",
        "email": "r.quaye@quayeceramics.example",
        "product": "Paperlark Studio",
        "urgency": None,
    }
    assert report.summary == "A pottery was charged twice for Paperlark Studio in April."


async def test_workflow_refuses_an_unreadable_document(tmp_path: Path) -> None:
    (tmp_path / "a.xls").write_bytes(b"x")
    with pytest.raises(DocumentError, match="has the unknown format"):
        await workflow.analyze(str(tmp_path / "a.xls"))
