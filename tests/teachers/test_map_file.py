"""The map of two tokenizers' tokens: what goes where, its file, and the pairs between which there is none."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from rlgkd.agents import Distill
from rlgkd.errors import DataError, ModelError
from rlgkd.lm import load_tokenizer
from rlgkd.scripts.cli import app
from rlgkd.teachers.map_file import make_map, map_to_bytes, read_map

STUDENT, TEACHER = "embedded:arithmetic-student", "embedded:grounded-teacher"
ENGLISH = [(b"t", b"h"), (b"th", b"e"), (b"a", b"n"), (b"an", b"d")]


def pairs_of(student, teacher) -> dict[str, str]:
    map, _ = make_map(student, teacher)
    names = (
        teacher.convert_ids_to_tokens(map.teacher_ids_E.tolist()),
        student.convert_ids_to_tokens(map.student_ids_E.tolist()),
    )
    return dict(zip(*names, strict=True))


@pytest.mark.parametrize("pieces", [False, True])
def test_a_token_goes_to_that_of_the_same_bytes_or_to_the_first_with_which_the_student_writes_it(pieces) -> None:
    student = tiny.bpe_tokenizer(*ENGLISH)
    teacher = tiny.bpe_tokenizer(
        (b"t", b"h"), (b"th", b"a"), (b"a", b"n"), (b"an", b"s"), (b" ", b"an"), pieces=pieces, special="</s>"
    )
    found = pairs_of(student, teacher)
    space = "\u2581" if pieces else "\u0120"
    assert found["th"] == "th" and found["an"] == "an" and found["</s>"] == "<end>"
    assert found["tha"] == "th" and found["ans"] == "an" and found[f"{space}an"] == found[space] == "\u0120"
    if pieces:
        assert found["<0x41>"] == found["A"] == "A" and found["<0xE4>"] == "\u00e4"


def test_one_tokenizer_is_mapped_token_by_token_to_itself() -> None:
    for tokenizer in (tiny.bpe_tokenizer(*ENGLISH, pieces=True), load_tokenizer(TEACHER)):
        map, coverage = make_map(tokenizer, tokenizer)
        assert map.teacher_ids_E.tolist() == map.student_ids_E.tolist() == [*range(len(tokenizer))]
        assert (coverage.same, coverage.unmapped, coverage.reached) == (len(tokenizer), 0, len(tokenizer))


def test_tokenizers_that_share_nothing_have_no_map() -> None:
    halves = tiny.byte_tokenizer(*(bytes([byte, byte]) for byte in range(256)))
    with pytest.raises(ModelError, match=r"teacher: .* there is no map between the two; set teacher_tokens to spans"):
        make_map(tiny.bpe_tokenizer(*ENGLISH), halves)
    with pytest.raises(ModelError, match=r"student: .* no pieces of a text's bytes"):
        make_map(tiny.word_tokenizer("A"), halves)


def test_the_command_writes_the_map_that_training_reads(tmp_path) -> None:
    out = tmp_path / "maps" / "map.safetensors"
    result = CliRunner().invoke(app, ["align", STUDENT, TEACHER, "--out", str(out)])
    assert result.exit_code == 0 and "277 are the student's too" in " ".join(result.output.split())
    student, teacher = load_tokenizer(STUDENT), load_tokenizer(TEACHER)
    made, read = make_map(student, teacher)[0], read_map(str(out), student, teacher)
    assert made.student_ids_E.equal(read.student_ids_E) and made.teacher_ids_E.equal(read.teacher_ids_E)
    rows = []
    for file in (None, out):
        agent = Distill(
            STUDENT,
            "rlgkd/Arithmetic-v0",
            teacher=TEACHER,
            device="cpu",
            prompts_per_update=2,
            group_size=1,
            teacher_tokens="map",
            teacher_map=file,
        )
        agent.learn(1)
        rows.append({name: value for name, value in agent.last_metrics.items() if name.startswith("train/")})
    assert rows[0] == rows[1] and rows[0]["train/divergence"] > 0


def test_a_file_that_is_damaged_or_of_others_is_refused(tmp_path) -> None:
    student, teacher = load_tokenizer(STUDENT), load_tokenizer(TEACHER)
    path = tmp_path / "map.safetensors"
    content = map_to_bytes(make_map(student, teacher)[0], student, teacher)
    path.write_bytes(content)
    with pytest.raises(DataError, match="another student's tokenizer; write it again with rlgkd align"):
        read_map(str(path), teacher, teacher)
    with pytest.raises(DataError, match="another teacher's tokenizer"):
        read_map(str(path), student, student)
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="could not be read"):
        read_map(str(path), student, teacher)
    save_file({"teacher_ids": np.zeros(2, dtype=np.int32)}, path)
    with pytest.raises(DataError, match="no file that rlgkd align has written"):
        read_map(str(path), student, teacher)
    path.write_bytes(content)
    tensors = load_file(path)
    for name, changed in (("student_ids", tensors["student_ids"] + 400), ("teacher_ids", tensors["teacher_ids"][::-1])):
        broken = map_to_bytes(make_map(student, teacher)[0], student, teacher)
        path.write_bytes(broken.replace(tensors[name].tobytes(), np.ascontiguousarray(changed).tobytes()))
        with pytest.raises(DataError, match="out of order or out of range"):
            read_map(str(path), student, teacher)
