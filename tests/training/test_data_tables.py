"""Texts in .csv, .jsonl and .json files."""

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.columns import labelled_texts
from fedlora.training.data.source import Source
from fedlora.training.data.splits import held_out_rows, held_out_values
from fedlora.training.data.tables import read_text_table

PLAIN = DataSection()
ALL = DataSection(group="ward", split_by="patient")


def table(folder: Path, content: str | bytes, name: str = "notes.csv") -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def read_table(path: Path, data: DataSection) -> Source:
    return labelled_texts(read_text_table(path), data)


def values(source: Source) -> list[object]:
    assert source.split_by is not None
    return [source.inputs, source.labels.tolist(), source.groups.tolist(), source.split_by.tolist()]


@pytest.mark.parametrize("name", ["notes.csv", "notes.csv.gz", "NOTES.CSV"])
def test_csv_columns_are_found_by_name_in_any_order(tmp_path: Path, name: str) -> None:
    content = (
        '\ufeffpatient,label,ward,age,text\r\n7, ill ,north,40,"cough, and\r\nfever"\r\n\r\n8,well,süd,50, fine \r\n'
    )

    source = read_table(table(tmp_path, content, name), ALL)

    assert values(source) == [["cough, and\r\nfever", " fine "], ["ill", "well"], ["north", "süd"], ["7", "8"]]


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.jsonl.gz", "notes.csv.jsonl"])
def test_jsonl_takes_text_numbers_and_truth_values(tmp_path: Path, name: str) -> None:
    content = (
        '{"text": "a\\u2028b", "label": true, "ward": 3, "patient": "p"}\n\n'
        '{"text": "c\u2028d", "label": "false", "ward": "x", "patient": 10}'
    )

    source = read_table(table(tmp_path, content, name), ALL)

    assert values(source) == [["a\u2028b", "c\u2028d"], ["true", "false"], ["3", "x"], ["p", "10"]]


def test_without_group_and_split_by_groups_are_empty(tmp_path: Path) -> None:
    source = read_table(table(tmp_path, "text,label\na,x\n"), PLAIN)

    assert source.groups.tolist() == [""]
    assert source.split_by is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("note,class\na,b\n", r"notes.csv, line 2: no column 'text' \(data.text\); the columns are 'note', 'class'"),
        ("text,label,label\na,b,c\n", "2 columns are named 'label'; rename all but one"),
        ("text,label,a,a\na,b,c,d\n", "2 columns are named 'a'; rename all but one"),
        ('text,label\n"a\nb",x\nc\n', "line 4: 1 fields; expected 2 as in the header"),
        ("text,label\na,b,c\n", "line 2: 3 fields; expected 2 as in the header"),
        ('text,label\na,x\n"b,y\nc,x\n', r"line 3: malformed \(unexpected end of data\); look at the double quotes"),
        ('text,label\n"a"b,x\n', r"line 2: malformed \(',' expected after '\"'\)"),
        ("text,label\na,x\n \t,x\n", "line 3: 'text' is empty; fill it in or remove the line"),
        ("text,label\na, \n", "line 2: 'label' is empty"),
        ("text,label\n", "no examples in it"),
        ("", "no examples in it"),
        (b"text,label\na,x\nb\xe9,y\n", "line 3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("text,label\na,x\n".encode("utf-16")[:-1], "line 2: byte 0x0a is not UTF-16; save the file as UTF-8"),
        ("text,label\na,x\n".encode("utf-16-le"), "line 1: a NUL character, which no text has; save the file as UTF-8"),
        ("text;label\na;b;x\n", r"line 2: 3 fields; .* \(put a text with semicolons in double quotes\)"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_table(table(tmp_path, content), PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b", label: 1}\n', r"line 2: not JSON \(.*, column 15\)"),
        ('["a", 1]\n', "line 1: list; expected an object"),
        ('\n{"text": "a", "class": 1}\n', r"line 2: no column 'label' \(data.label\); the columns are 'text', 'class'"),
        ('{"text": 5, "label": 1}\n', "line 1: 'text' is 5; expected text$"),
        (
            '{"text": "' + "a" * 99 + '"}\n{"text": ["' + "b" * 99 + '"]}\n',
            r"line 2: 'text' is .{60}\.\.\.; expected text$",
        ),
        ('{"text": "a", "label": 0.5}\n', "line 1: 'label' is 0.5; expected text or a whole number"),
        ('{"text": "a", "label": null}\n', "line 1: 'label' is empty"),
        ('{"text": "\\ud83d", "label": 1}\n', "line 1: 'text' has half a surrogate pair"),
        ('{"text": "a\\u0000", "label": 1}\n', "line 1: 'text' has a NUL character"),
        ('{"text": NaN, "label": 1}\n', "line 1: 'text' is NaN; expected text"),
        ('{"text": "a", "label": 1e999}\n', "line 1: 'label' is Infinity; expected text or a whole number"),
        ('{"text": "a", "label": ' + "9" * 5_000 + "}", r"line 1: not JSON \(a whole number of more than 4,300 digits"),
        ("[" * 100_000, r"line 1: not JSON \(lists or objects nested too deeply"),
    ],
)
def test_a_jsonl_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(table(tmp_path, content, "notes.jsonl"), PLAIN)


@pytest.mark.parametrize("name", ["notes.json", "notes.JSON.gz"])
def test_a_json_is_one_list_of_objects(tmp_path: Path, name: str) -> None:
    content = '[{"text": "a",\n "label": 1},\n {"text": "b", "label": 2}]'
    source = read_table(table(tmp_path, content, name), PLAIN)
    assert (source.inputs, source.labels.tolist()) == (["a", "b"], ["1", "2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": 5}]', "notes.json, row 2: 'text' is 5; expected text"),
        ('[{"text": "a"}, 5]', r"notes.json, row 2: int; expected an object such as \{...\}"),
        ('{"text": "a"}', "notes.json: dict; expected a list of objects"),
        ('{"text": "a"}\n{"text": "b"}', r"line 2: not JSON \(Extra data.*one object on each line is named .jsonl"),
        ("[]", "notes.json: no examples in it"),
        ("", "notes.json: empty, no examples in it; fill it or remove it"),
        ('[{"text": ' + "[" * 100_000, r"line 1: not JSON \(lists or objects nested too deeply"),
    ],
)
def test_a_json_that_cannot_be_used_is_refused_with_its_row(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(table(tmp_path, content, "notes.json"), PLAIN)


def test_a_cell_beyond_what_a_csv_holds_is_refused_with_what_holds_it(tmp_path: Path) -> None:
    content = "text,label\na,x\n" + "b" * 200_000 + ",y\n"
    with pytest.raises(DataError, match=r"line 3: malformed \(field larger than field limit.*longer texts as .jsonl"):
        read_table(table(tmp_path, content), PLAIN)


def test_a_missing_optional_column_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no column 'patient' \(data.split_by\); the columns are 'text', 'label', 'ward'"
    ):
        read_table(table(tmp_path, "text,label,ward\na,b,c\n"), ALL)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "text,label\na,x\n", "notes.csv.gz")
    whole = path.read_bytes()
    for content in (b"text,label\n", whole[:-6], whole[:12] + b"\xff\xff" + whole[14:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"notes.csv.gz: cannot be read \(.+\)"):
            read_table(path, PLAIN)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("text;label\r\na, b;x\r\nc;y\r\n", "notes.csv"),
        ("text\tlabel\na, b\tx\nc\ty\n", "notes.csv"),
        ("text\tlabel\na, b\tx\nc\ty\n", "NOTES.TSV"),
        ("text\tlabel\na, b\tx\nc\ty\n", "notes.tsv.gz"),
        ('text,label\n"a, b",x\nc,y\n', "notes.tsv"),
        ('text,label\n"a, b",x\nc,y\n', "notes.csv"),
        ("sep=;\r\ntext;label\r\na, b;x\r\nc;y\r\n", "notes.csv"),
        ('"text";"label"\n"a, b";"x"\n"c";"y"\n', "notes.csv"),
    ],
)
def test_fields_are_separated_by_what_divides_the_header(tmp_path: Path, content: str, name: str) -> None:
    source = read_table(table(tmp_path, content, name), PLAIN)
    assert (source.inputs, source.labels.tolist()) == (["a, b", "c"], ["x", "y"])


def test_a_line_is_counted_from_the_top_also_below_a_separator_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"notes.csv, line 4: 'text' is empty"):
        read_table(table(tmp_path, "sep=;\ntext;label\na;x\n;y\n"), PLAIN)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["notes.csv", "notes.jsonl.gz"])
def test_a_byte_order_mark_says_how_a_text_is_encoded(tmp_path: Path, encoding: str, name: str) -> None:
    content = "text,label\nÖl 🌊,x\n" if "csv" in name else '{"text": "Öl 🌊", "label": "x"}\n'
    source = read_table(table(tmp_path, content.encode(encoding), name), PLAIN)
    assert (source.inputs, source.labels.tolist()) == (["Öl 🌊"], ["x"])


@pytest.mark.parametrize("missing", ["nan", "NaN", "NULL", "null", "None", "NA", "N/A", "<NA>", " nan "])
def test_a_word_for_a_missing_label_is_no_label_unless_the_run_names_it(tmp_path: Path, missing: str) -> None:
    path = table(tmp_path, f"text,label\na,x\nb,{missing}\n")
    with pytest.raises(DataError, match=r"line 3: 'label' is '.+', which stands for a missing value; .*data\.labels"):
        read_table(path, PLAIN)
    source = read_table(path, DataSection(labels=("x", missing)))
    assert source.labels.tolist() == ["x", missing.strip()]
    with pytest.raises(DataError, match="line 2: 'label' is 'nan', which stands for a missing value"):
        read_table(table(tmp_path, '{"text": "a", "label": "x"}\n{"text": "b", "label": "nan"}', "a.jsonl"), PLAIN)
    with pytest.raises(DataError, match="line 1: 'label' is NaN, a missing value; fill it in or remove the line"):
        read_table(table(tmp_path, '{"text": "b", "label": NaN}', "a.jsonl"), PLAIN)


def test_a_group_may_be_a_region_and_is_not_missing(tmp_path: Path) -> None:
    data = DataSection(group="ward")
    assert read_table(table(tmp_path, "text,label,ward\na,none,NA\n"), data).groups.tolist() == ["NA"]
    with pytest.raises(DataError, match="line 2: 'ward' is 'nan', which stands for a missing value"):
        read_table(table(tmp_path, "text,label,ward\na,none,nan\n"), data)


def test_all_bad_rows_are_counted_and_the_first_ten_named(tmp_path: Path) -> None:
    rows = "".join(f"t{number},{'' if number % 3 else 'x'}\n" for number in range(30)) + ",y\n"
    with pytest.raises(DataError) as caught:
        read_table(table(tmp_path, f"text,label\n{rows}"), PLAIN)
    first, *others = str(caught.value).splitlines()
    assert first == "21 of 31 rows cannot be used; the first 10:"
    assert len(others) == 10
    assert others[0].endswith("notes.csv, line 3: 'label' is empty; fill it in or remove the line")
    with pytest.raises(DataError) as caught:
        read_table(table(tmp_path, f"text,label\n{rows}a,b,c\nd\ne,f\n"), PLAIN)
    first, *others = str(caught.value).splitlines()
    assert first == "2 of 34 rows cannot be used:"
    assert [line.split("line ")[1][:12] for line in others] == ["33: 3 fields", "34: 1 fields"]
    lines = ['{"text": "a", "label": 1}', "{", "5", '{"text": "b", "label": 2}', "]"]
    with pytest.raises(DataError, match=r"^3 of 5 rows cannot be used:\n.*line 2: not JSON.*\n.*line 3: int"):
        read_table(table(tmp_path, "\n".join(lines), "a.jsonl"), PLAIN)


def test_a_column_is_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    composed, decomposed = "Müdigkeit", "Mu\u0308digkeit"
    for header, asked in ((composed, decomposed), (decomposed, composed)):
        source = read_table(table(tmp_path, f"text,{header}\na,x\n"), DataSection(label=asked))
        assert source.labels.tolist() == ["x"]
    with pytest.raises(DataError, match="2 columns are named 'Müdigkeit'"):
        read_table(table(tmp_path, f"text,{composed},{decomposed}\na,x,y\n"), DataSection(label=composed))


def test_one_long_cell_does_not_widen_the_others(tmp_path: Path) -> None:
    rows = [{"text": "t", "label": f"l{number % 2}", "ward": "w", "patient": f"{number}"} for number in range(2_000)]
    rows[7] = {**rows[7], "label": "x" * 200_000, "ward": "y" * 200_000, "patient": "z" * 200_000}
    path = table(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), "notes.jsonl")
    tracemalloc.start()
    try:
        source = read_table(path, ALL)
        assert source.split_by is not None
        held_out_values(source.groups, source.split_by, fraction=0.2, random=np.random.default_rng(0))
        held_out_rows(source.groups, fraction=0.2, generator_of=lambda _: np.random.default_rng(0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    assert len(source.labels[7]) == 200_000
