"""Texts of users: one encoding, one rule for lines, one cleaning, in every reader."""

import ast
import io
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from builders import SIDE, builder
from PIL import Image
from tar_shards import write

from triptych.cli.chat import converse, read_questions
from triptych.cli.input_files import read_edits, read_prompts
from triptych.data_modules import BadSample, ConversationFile, ImageFolder, ShardFolder
from triptych.data_modules.batching.clean_text import captions_of
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.shards.build_index import build_index
from triptych.data_modules.shards.index_columns import add_token_counts
from triptych.data_modules.sources.detect import detect_source
from triptych.data_modules.tools.inspect import collect_statistics
from triptych.data_modules.tools.pack import pack, skipped
from triptych.evaluation import dpg, geneval, wise
from triptych.evaluation.image_sources import read_images
from triptych.inference import image_generation
from triptych.inference.chat_messages import read_messages
from triptych.inference.model_inference import inference_of
from triptych.interfaces import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Preprocessing
from triptych.serving.http.request_schemas import GenerationBody
from triptych.serving.webui.launch import read_prompts as read_page_prompts
from triptych.utils.documents import parse_json, read_json, read_standard_line, read_text
from triptych.utils.errors import TextError, UserError
from triptych.utils.prompt_files import read_input
from triptych.utils.text import clean_text, decode_text, is_blank, numbered_lines, split_lines

ROOT = Path(__file__).parents[2]
# Every character that Python, or Unicode, counts as the end of a line, but \n.
ENDINGS = [
    each
    for each in map(chr, range(sys.maxunicode + 1))
    if each != "\n" and len(f"a{each}b".splitlines()) > 1
]
MARK = b"\xef\xbb\xbf"
KEPT = ("\r", "\u2028", "\u2029")  # no control characters, or those that texts have
CLEAN = {f"red{each}circle": f"red{each if each in KEPT else ' '}circle" for each in ENDINGS}
NAMES = [f"{ord(each):04x}" for each in ENDINGS]


def png(shade=9):
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (shade, 10, 200)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


@pytest.fixture
def given(monkeypatch):
    """A function that puts bytes on standard input."""

    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def prompts_of(path):
    return [each.text for each in read_prompts([], str(path), read_input(str(path)))]


def test_all_endings_are_tried():
    assert NAMES == "000b 000c 000d 001c 001d 001e 0085 2028 2029".split()


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS, ids=NAMES)
def test_no_other_character_ends_a_line(ending):
    text = f"a{ending}b\r\n\n  \nc{ending}\n"
    assert split_lines(text)[0] == f"a{ending}b"
    assert [number for number, _ in numbered_lines(text)] == [1, 4]


@pytest.mark.parametrize("said", CLEAN, ids=NAMES)
def test_a_prompt_is_one_whatever_is_inside(said, tmp_path, given):
    text = f"{said}\r\na blue square\n".encode()
    (tmp_path / "p.txt").write_bytes(text)
    expected = [CLEAN[said], "a blue square"]
    assert prompts_of(tmp_path / "p.txt") == read_page_prompts(tmp_path / "p.txt") == expected
    given(text)
    assert [each.text for each in read_prompts([], "-", read_input("-"))] == expected
    given(text)
    assert read_standard_line() == f"{said}\r\n" and read_standard_line() == "a blue square\n"
    assert read_standard_line() is None


def json_lines(said, **more):
    """Two JSON lines, the characters as they are where JSON allows that."""
    rows = [{"prompt": said, **more}, {"prompt": "a blue square", **more}]
    return "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


@pytest.mark.parametrize("said", CLEAN, ids=NAMES)
def test_a_json_line_is_one_whatever_is_inside(said, tmp_path, given):
    expected = [CLEAN[said], "a blue square"]
    for name in ("p.jsonl", "P.JSONL", "p.ndjson", "p.NdJson"):
        (tmp_path / name).write_bytes(json_lines(said))
        assert prompts_of(tmp_path / name) == read_page_prompts(tmp_path / name) == expected
    given(json_lines(said))
    assert [each.text for each in read_prompts([], "-", read_input("-"))] == expected
    rows = [{"image": "x.png", "question": said}]
    del rows[0]["image"]
    (tmp_path / "q.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False), newline="")
    ((_, name, messages),) = read_questions(str(tmp_path / "q.jsonl"))
    assert name == "1" and messages[0]["content"] == [CLEAN[said]]
    (tmp_path / "g.jsonl").write_bytes(json_lines(said, tag="x", include=[], item_id="1"))
    for benchmark in (geneval, dpg):
        read = benchmark.read_prompts(tmp_path / "g.jsonl")
        assert [entry["prompt"] for entry in read] == expected


@pytest.mark.parametrize("name", ["p.json", "P.JSON"])
def test_a_json_list_of_prompts(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(MARK + b'["a red circle", {"prompt": "a star", "seed": 3}]')
    first, second = read_prompts([], str(path), read_input(str(path)))
    assert (first.text, second.text, second.seed) == ("a red circle", "a star", 3)
    path.write_text("[5]")
    with pytest.raises(UserError, match=f"{name}: entry 1 is neither a text nor an object"):
        prompts_of(path)


@pytest.mark.parametrize("name", ["p.csv", "P.TSV", "p.parquet", "p.YAML"])
def test_other_formats_are_not_drawn_line_by_line(name, tmp_path):
    (tmp_path / name).write_text("prompt\na red circle\n")
    with pytest.raises(UserError, match=f"{name} is a {Path(name).suffix.lower()} file; give"):
        prompts_of(tmp_path / name)


@pytest.mark.parametrize("name", ["p.txt", "p", "p.prompts", "P.TXT"])
@pytest.mark.parametrize(
    "line", ['{"prompt": "a"}', ' {"prompt', '["a"]', "[", '[{"prompt": "a"}]']
)
def test_json_in_a_text_file_is_pointed_out(name, line, tmp_path):
    (tmp_path / name).write_text(f"a red circle\n\n{line}\n")
    with pytest.raises(UserError, match=rf"/{name}:3 begins with .*give it as .jsonl"):
        prompts_of(tmp_path / name)
    with pytest.raises(UserError, match=rf"/{name}:3 begins with"):
        read_page_prompts(tmp_path / name)


def test_brackets_are_no_json(tmp_path):
    (tmp_path / "p.txt").write_text("[sketch] a circle\n(a star)\n")
    assert prompts_of(tmp_path / "p.txt") == ["[sketch] a circle", "(a star)"]


# File -> what it alone may use: standard input of people is read by `documents`.
MAY = {
    "src/triptych/utils/documents.py": {"sys.stdin"},
    "src/triptych/utils/standard_streams.py": {"sys.stdin"},
    "src/triptych/cli/chat.py": {"sys.stdin"},  # whether it is a terminal
    "src/triptych/serving/images/decode_worker.py": {"sys.stdin"},  # of our own process
    "src/triptych/evaluation/geneval/detection.py": {"read_text"},  # a file of the package
}


@pytest.mark.parametrize("root", ["src", "data_modules", "callbacks"])
def test_no_code_reads_text_by_other_rules(root):
    """`splitlines`, `Path.read_text` and `sys.stdin` know more ends of lines than two."""
    found = set()
    for path in sorted((ROOT / root).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            used = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            last = used.rpartition(".")[2]
            if used == "documents.read_text":
                continue
            for each in ("sys.stdin", "read_text"):
                if each in (used, last) and each not in MAY.get(name, ()):
                    found.add(f"{name}:{node.lineno} {each}")
            if last in ("splitlines", "readlines"):
                found.add(f"{name}:{node.lineno} {last}")
    assert not found, (
        "read by triptych.utils.documents, and cut by split_lines of triptych.utils.text"
    )


# --- encodings ------------------------------------------------------------------------------------

WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def test_byte_order_mark_is_removed_from_text_and_json(tmp_path, given):
    for name, content in {
        "a.txt": b"a red circle",
        "a.jsonl": b'{"prompt": "a red circle"}',
        "a.ndjson": b'{"prompt": "a red circle"}',
        "a.json": b'["a red circle"]',
    }.items():
        (tmp_path / name).write_bytes(MARK + content)
        assert prompts_of(tmp_path / name) == read_page_prompts(tmp_path / name) == ["a red circle"]
        if name not in ("a.json"):  # two files, one behind the other
            (tmp_path / name).write_bytes((MARK + content + b"\n") * 2)
            assert prompts_of(tmp_path / name) == ["a red circle"] * 2
    given(MARK + b"a red circle\n")
    assert read_standard_line() == "a red circle\n"
    assert parse_json(MARK + b'{"a": 1}', "x") == {"a": 1}
    wise_entry = {"prompt_id": 1, "Prompt": "a red circle", "Explanation": ""}
    (tmp_path / "w.json").write_bytes(MARK + json.dumps([wise_entry]).encode())
    assert wise.read_prompts([tmp_path / "w.json"], wise.LEGACY)[1].text == "a red circle"


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.ndjson"])
def test_wide_encodings_are_refused_by_the_name_of_the_file(encoding, name, folder):
    text = {
        ".csv": "file_name,text\na.png,a red circle\n",
        ".tsv": "file_name\ttext\na.png\ta red circle\n",
        ".json": '[{"image": "a.png", "caption": "a red circle"}]',
    }.get(Path(name).suffix, '{"image": "a.png", "caption": "a red circle", "prompt": "red"}')
    path = folder / name
    path.write_bytes(text.encode(encoding))
    doors = [lambda: detect_source(path).open(), lambda: ConversationFile(path).open()]
    if name not in ("a.csv", "a.tsv"):
        doors = [*(doors if name != "a.txt" else []), lambda: prompts_of(path)]
        doors += [lambda: read_questions(str(path)), lambda: geneval.read_prompts(path)]
        doors += [lambda: wise.read_prompts([path], wise.LEGACY), lambda: read_json(path)]
    for door in doors if name not in ("a.csv", "a.tsv") else doors[:1]:
        with pytest.raises(UserError, match=f"{name}.* is UTF-(16|32); save it as UTF-8"):
            door()


def test_a_mark_in_the_json_of_a_sample(tmp_path):
    content = MARK + b'{"caption": "\xef\xbb\xbfred"}'
    write(tmp_path / "a.tar", [("a.png", png()), ("a.json", content)])
    assert ShardFolder(tmp_path).open().caption(0) == "red"


def test_non_utf8_text_is_refused(given):
    for content, says in [(b"caf\xe9", "no text in UTF-8"), (b"\xff\xfea\0", "UTF-16")]:
        given(content)
        with pytest.raises(UserError, match=f"standard input is {says}"):
            read_input("-")
    assert decode_text(MARK, "x") == "" == decode_text(b"", "x")


def test_closed_standard_input_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for door in (lambda: read_input("-"), lambda: converse(None, [], {}, None)):
        with pytest.raises(UserError, match="standard input is closed"):
            door()


# --- cleaning -------------------------------------------------------------------------------------

CONTROLS = [chr(n) for n in (*range(0x20), *range(0x7F, 0xA0)) if chr(n) not in "\t\n\r\0"]


def test_cleaning_again_changes_nothing():
    text = f"a{''.join(CONTROLS)}b\ufeff\tc\nd\r\u2028e\u200b\ud83d\ude00"
    assert clean_text(text) == "a b \tc\nd\r\u2028e\u200b\U0001f600"
    assert clean_text(clean_text(text)) == clean_text(text)
    assert all(clean_text(f"{each}a{each}b{each}") == "a b" for each in CONTROLS)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "caf\udce9", "\udc00\ud800"])
def test_a_nul_and_half_a_character_are_refused_at_every_door(text, tmp_path, pipe):
    processor = pipe.model.preprocessing()
    doors = [
        lambda: read_prompts([text], None),
        lambda: pipe(text).images,
        lambda: pipe("red", negative_prompt=text).images,
        lambda: pipe.edit(Image.new("RGB", (9, 9)), prompt=text).images,
        lambda: pipe.chat([{"role": "user", "content": text}]),
        lambda: pipe.chat([{"role": "user", "content": [{"type": "text", "text": text}]}]),
        lambda: inference_of(pipe.model).answer(None, [text]),
        lambda: GenerationBody(prompt=text),
        lambda: captions_of(text, "k"),
        lambda: TaskDataset(One(text), TEXT_TO_IMAGE).prompt(0, 0, processor),
    ]
    for number, door in enumerate(doors):
        with pytest.raises(ValueError, match="NUL|UTF-8"):
            door()
            pytest.fail(f"door {number} takes {text!r}")


def test_a_nul_in_a_file_is_refused_by_its_line(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"a star\n\na red\0circle\n")
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "a star"}\n\n{"prompt": "a red\\u0000circle"}')
    row = {"tag": "x", "include": [], "item_id": "1", "prompt": "a\0b"}
    (tmp_path / "g.jsonl").write_text(json.dumps(row))
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "a\0b"}))
    (tmp_path / "e.jsonl").write_text(json.dumps({"instruction": "a\0b", "image": __file__}))
    (tmp_path / "n.jsonl").write_text(json.dumps({"prompt": "a", "negative_prompt": "a\0b"}))
    for name, read, place in [
        ("p.txt", prompts_of, r"p.txt:3: the prompt"),
        ("p.txt", read_page_prompts, r"p.txt:3: the prompt"),
        ("p.jsonl", prompts_of, r"p.jsonl:3: the prompt"),
        ("n.jsonl", prompts_of, r"n.jsonl:1: negative_prompt"),
        ("g.jsonl", geneval.read_prompts, "prompt 1 of .*g.jsonl"),
        ("g.jsonl", dpg.read_prompts, "prompt 1 of .*g.jsonl"),
        ("q.jsonl", lambda path: read_questions(str(path)), "q.jsonl:1: the question"),
        ("e.jsonl", lambda p: read_edits(str(p), read_text(p)), "e.jsonl:1: the instruction"),
    ]:
        with pytest.raises(TextError, match=f"{place} holds a NUL"):
            read(tmp_path / name)


def test_model_output_is_never_refused():
    talk = [
        {"role": "user", "content": "a\x01b"},
        {"role": "assistant", "content": "c\0\x02d"},
        {"role": "user", "content": "e"},
    ]
    assert [message.content for message in read_messages(talk)] == [["a b"], ["c d"], ["e"]]


class One(ShardFolder):
    """A source of one caption, as a user's own class may give it."""

    def __init__(self, caption):
        self.text, self._files = caption, {}

    def __len__(self):
        return 1

    def key(self, number):
        return "k"

    def captions(self, number):
        return [self.text]

    def metadata(self, number):
        return {"conversation": [[self.text, "yes"]]}

    def has_image(self, number, role):
        return True


ODD = [
    *(f" red{each}circle " for each in [*ENDINGS, *CONTROLS]),
    "\ufeffa mark",
    "a\u200bjoiner",
    "caf\u0301e",
    "\U0001f600 \ud83d\ude00",
    "x" * 60,
]


def test_training_and_inference_read_the_same_tokens(tmp_path, pipe, given):
    processor = pipe.model.preprocessing()
    members = []
    for number, text in enumerate(ODD):
        encoded = text.encode("utf-16", "surrogatepass").decode("utf-16").encode()
        members += [(f"{number:03d}.png", png()), (f"{number:03d}.txt", encoded)]
    write(tmp_path / "s" / "a.tar", members)
    shards = ShardFolder(tmp_path / "s").open()
    trained = [
        TaskDataset(shards, TEXT_TO_IMAGE).prompt(n, n, processor).ids for n in range(len(ODD))
    ]
    own = [TaskDataset(One(text), TEXT_TO_IMAGE).prompt(0, 0, processor).ids for text in ODD]
    assert own == trained

    def rows(texts):
        return image_generation.prompt_rows(pipe.model, texts)

    assert rows(ODD) == trained
    assert rows([each.text for each in read_prompts(ODD, None)]) == trained
    assert rows([GenerationBody(prompt=each).prompt for each in ODD]) == trained
    lines = "\n".join(json.dumps({"prompt": each}) for each in ODD).encode()
    (tmp_path / "p.jsonl").write_bytes(lines)
    assert rows(prompts_of(tmp_path / "p.jsonl")) == trained
    assert rows(read_page_prompts(tmp_path / "p.jsonl")) == trained
    given(lines)
    assert rows([each.text for each in read_prompts([], "-", read_input("-"))]) == trained


def test_questions_are_cleaned_alike_in_training_and_in_chats(pipe):
    from triptych.conversations import chat_ids

    processor = pipe.model.preprocessing()
    for text in map(str.strip, ODD):
        learned = TaskDataset(One(text), IMAGE_TO_TEXT).prompt(0, 0, processor)
        (message,) = read_messages([{"role": "user", "content": [Image.new("RGB", (9, 9)), text]}])
        asked = chat_ids(
            processor.tokenizer, [("user", [processor.image_tokens, message.content[1]])], 256
        )
        assert learned.ids[: len(asked)] == asked, ascii(text)


# --- captions -------------------------------------------------------------------------------------

BLANKS = [" ", "\t\r\n", "\u3000\u00a0", "\u200b\u2060", "\u2028", "\ufeff", "\x85\x0b", "\u2800"]


@pytest.mark.parametrize("text", BLANKS, ids=ascii)
def test_white_space_of_any_kind_is_blank(text, tmp_path):
    assert is_blank(text)
    with pytest.raises(ValueError, match="caption is blank"):
        captions_of(text, "k")
    with pytest.raises(UserError, match="the prompt is empty"):
        read_prompts([text], None)


# Bytes of a caption's file -> why it is left out; None: it is read.
KINDS = {
    b"": "caption is empty",
    b"  \n": "caption is blank",
    "\u200b\u3000".encode(): "caption is blank",
    "hi".encode("utf-16"): "caption is UTF-16",
    b"h\0i\0": "caption is UTF-16",
    "hi".encode("utf-32"): "caption is UTF-32",
    b"a red circle caf\xe9, as Latin-1": "caption is no UTF-8",
    b"a red\0circle": "caption holds a NUL",
    MARK + b"with mark\r\n": None,
    b"x" * 5000: None,
}
REASONS = Counter(reason for reason in KINDS.values() if reason)


def test_each_kind_of_caption_is_counted_by_its_own_name(tmp_path, tokenizer):
    members, plain = [], tmp_path / "plain"
    plain.mkdir()
    for number, content in enumerate(KINDS):
        members += [(f"{number}.png", png(number)), (f"{number}.txt", content)]
        (plain / f"{number}.png").write_bytes(png(number))
        (plain / f"{number}.txt").write_bytes(content)
    write(tmp_path / "s" / "a.tar", members)
    shards = ShardFolder(tmp_path / "s").open()
    for source in (shards, detect_source(plain).open()):
        assert collect_statistics(source, workers=0).problems == REASONS
        lost = pack(source, tmp_path / f"out-{type(source).__name__}", {}, workers=0)
        assert skipped(lost) == REASONS and lost[0].samples == 2
    processor = Preprocessing(tokenizer, max_tokens=8192, image_size=SIDE)
    batch = builder(shards, TEXT_TO_IMAGE, processor)(0, range(len(KINDS)), range(len(KINDS)))
    assert Counter(reason for _, reason in batch.dropped_samples) == REASONS
    assert [shards.caption(number) for number in (8, 9)] == ["with mark", "x" * 5000]
    repacked = ShardFolder(tmp_path / "out-ShardFolder").open()
    assert [repacked.caption(number) for number in range(2)] == ["with mark", "x" * 5000]


def test_scores_read_captions_by_the_same_rule(tmp_path):
    plain, shards = tmp_path / "plain", tmp_path / "s"
    plain.mkdir()
    members = []
    for number, content in enumerate(KINDS):
        (plain / f"{number}.png").write_bytes(png())
        (plain / f"{number}.txt").write_bytes(content)
        members += [(f"{number}.png", png()), (f"{number}.txt", content)]
    write(shards / "a.tar", members)
    for folder in (plain, shards):
        entries = sorted(read_images(folder), key=lambda entry: entry.key)
        expected = {str(n): reason is None for n, reason in enumerate(KINDS.values())}
        found = {Path(each.key).stem: each.caption is not None for each in entries}
        assert found == expected
        assert all(bool(each.note) != (each.caption is not None) for each in entries)


def several(folder):
    write(folder / "a.tar", [("a.png", png()), ("a.json", b'{"caption": ["one", " ", "two"]}')])
    return ShardFolder(folder).open()


def test_a_list_of_captions_is_a_choice_by_the_number_of_the_sample(tmp_path, tokenizer):
    source = several(tmp_path / "s")
    assert source.captions(0) == ["one", "two"] and source.caption(0) == "one"
    dataset = TaskDataset(source, TEXT_TO_IMAGE)
    drawn = [dataset.caption(0, sample, seed=0) for sample in range(100)]
    assert drawn == [dataset.caption(0, sample, seed=0) for sample in range(100)]
    assert drawn != [dataset.caption(0, sample, seed=1) for sample in range(100)]
    assert 30 < drawn.count("one") < 70 and set(drawn) == {"one", "two"}
    pack(source, tmp_path / "out", {}, workers=0)
    assert ShardFolder(tmp_path / "out").open().captions(0) == ["one", "two"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "metadata.jsonl", "t.json", "t.parquet"])
def test_lists_of_captions_in_every_format(name, folder):
    row = {"file_name": "a.png", "text": ["one", "two"]}
    if name == "t.parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([row]), folder / name)
    else:
        row |= {"image": "a.png"} if name == "t.json" else {}
        (folder / name).write_text(json.dumps([row] if name == "t.json" else row))
    source = detect_source(folder if name.startswith("meta") else folder / name).open()
    assert source.captions(0) == ["one", "two"]


@pytest.mark.parametrize("value", [[], ["", " "], [5], [["a"]], 5, None])
def test_lists_without_a_caption_are_bad_samples(value):
    with pytest.raises(ValueError, match="caption is (an empty list|blank|no text)"):
        captions_of(value, "k")


def table_of(name, said):
    """A table of one caption, as a file of that name writes it."""
    row = {"file_name": "a.png", "text": said}
    conversation = {"image": "a.png", "caption": said}
    return {
        "t.csv": f'file_name,text\r\na.png,"{said}"\r\n',
        "t.TSV": f'file_name\ttext\na.png\t"{said}"\n',
        "metadata.csv": f'file_name,text\na.png,"{said}"\n',
        "metadata.jsonl": json.dumps(row, ensure_ascii=False),
        "t.jsonl": json.dumps(row, ensure_ascii=False),
        "t.NDJSON": json.dumps(row, ensure_ascii=False),
        "t.json": json.dumps([conversation], ensure_ascii=False),
        "c.jsonl": json.dumps(conversation, ensure_ascii=False),
        "a.txt": said,
    }[name].encode()


TABLES = "t.csv t.TSV metadata.csv metadata.jsonl t.jsonl t.NDJSON t.json c.jsonl a.txt".split()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("mark", [b"", MARK], ids=["plain", "mark"])
def test_captions_with_ends_of_lines_inside_are_one(name, mark, folder):
    for said, expected in CLEAN.items():
        (folder / name).write_bytes(mark + table_of(name, said))
        path = folder if name in ("a.txt", "metadata.csv", "metadata.jsonl") else folder / name
        source = detect_source(path).open()
        assert len(source) == 1 and source.caption(0) == expected, ascii(said)
        for left in folder.glob("*.idx"):
            left.unlink()


def test_a_lone_return_in_a_csv_costs_its_row(folder):
    (folder / "t.csv").write_bytes(b"file_name,text\na.png,a\rb\na.png,good\n")
    lost = pack(detect_source(folder / "t.csv").open(), folder / "out", {}, workers=0)
    assert skipped(lost) == {"row is no CSV": 1} and lost[0].samples == 1


def test_caption_tokens_are_counted_on_the_cleaned_text(tmp_path, tokenizer):
    file = tmp_path / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(file))
    texts = [MARK + b"red", b"red", b"", "red".encode("utf-16")]
    members = [m for n, t in enumerate(texts) for m in [(f"{n}.png", png()), (f"{n}.txt", t)]]
    members += [("4.png", png()), ("4.json", b'{"caption": ["a", "red"]}')]
    index = add_token_counts(build_index(write(tmp_path / "s" / "a.tar", members)), file)
    one = len(tokenizer("red", add_special_tokens=False)["input_ids"])
    assert index.contents().tokens.tolist() == [one, one, 0, 0, one]


# --- commands -------------------------------------------------------------------------------------


def test_generate_draws_each_prompt_once(triptych):
    Path("P.NDJSON").write_bytes(MARK + json_lines("red\u2028circle"))
    Path("p.txt").write_bytes(MARK + "red\u2028circle\r\na blue\x85square\r\n".encode())
    few = ["--num-inference-steps", "1", "--decoder-num-inference-steps", "1"]
    for name, number in [("P.NDJSON", 2), ("p.txt", 2)]:
        status, out, err = triptych("generate", "--prompts", name, *few, "-o", name + "-out")
        assert status == 0, err
        assert out.count("\n") == number and "red circle\n" in out


@pytest.mark.parametrize(
    ("command", "content", "says"),
    [
        ("generate --prompts -", b"a\nred\0circle\n", "standard input:2: the prompt holds a NUL"),
        ("generate --prompts -", b'a\n{"prompt": "b"}\n', "standard input:2 begins with '{'"),
        ("generate --prompts -", "red\n".encode("utf-16"), "standard input is UTF-16"),
        ("generate --prompts -", b"caf\xe9\n", "standard input is no text in UTF-8 (byte 3)"),
        ("chat --jsonl -", b'\n{"question": "a\\u0000"}\n', "standard input:2: the question holds"),
        ("edit --jsonl -", b'[\n{"x": 1}]', "standard input:1 is no JSON"),
        ("chat", b'{"question": "a"}\n', "is JSON; give JSON lines by --jsonl -"),
        ("chat", b"what\0is it?\n", "message 1 holds a NUL (character 5); remove it."),
    ],
)
def test_wrong_input_is_refused_by_its_place(triptych, command, content, says):
    status, out, err = triptych(*command.split(), stdin=content)
    assert status == 1 and says in err and "Traceback" not in err and not out


def test_an_instruction_of_an_edit_is_not_learned_as_a_caption(tmp_path, tokenizer):
    for name in ("a.source.png", "a.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("make it red")
    processor = Preprocessing(tokenizer, max_tokens=256, image_size=SIDE, image_tokens=1)
    dataset = TaskDataset(ImageFolder(tmp_path).open(), IMAGE_TO_TEXT)
    with pytest.raises(BadSample, match="edit without a conversation"):
        dataset.prompt(0, 0, processor)
    (tmp_path / "a.txt").unlink()
    facts = {"caption": "make it red", "conversation": [["what is it?", "a square"]]}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    for text_only_ratio in (0.0, 1.0):
        dataset = TaskDataset(
            ImageFolder(tmp_path).open(), IMAGE_TO_TEXT, text_only_ratio=text_only_ratio
        )
        prompt = dataset.prompt(0, 0, processor)
        assert "a square" in tokenizer.decode(prompt.ids) and prompt.image_role
        assert "make it red" not in tokenizer.decode(prompt.ids)
