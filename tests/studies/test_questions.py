"""Questions are read strictly: a bad row is told by its line, and never by what it holds."""

import json

import pytest

from tomoglot.studies.questions import Question, plain_answer, read_questions, save_questions

GOOD = {"subject": "ANNA", "study": "1", "question": "Is there a mass?", "answer": "Yes."}


def lines(tmp_path, *rows):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def table(tmp_path, text):
    path = tmp_path / "questions.csv"
    path.write_text(text)
    return path


def test_a_question_is_closed_by_its_answer_unless_the_table_says_otherwise(tmp_path):
    open_ = GOOD | {"question": "Where?", "answer": "Left  Lobe"}
    said = GOOD | {"question": "Left or right?", "answer": "left", "form": "closed", "kind": "side"}
    first, second, third = read_questions(lines(tmp_path, GOOD, open_, said))
    assert (first.answer, first.form, first.kind, first.sequence) == ("yes", "closed", "other", None)
    assert (second.answer, second.form) == ("left lobe", "open")
    assert (third.form, third.kind) == ("closed", "side")


def test_a_csv_and_json_lines_say_the_same_and_what_is_saved_is_read_back(tmp_path):
    text = (
        "\ufeffsubject,study,question,answer,kind,sequence\n"
        'ANNA,1,"Is there\na mass?",Yes.,presence,\nANNA,1,Bright?,no,,T1Gd\n'
    )
    found = read_questions(table(tmp_path, text))
    assert found[0] == Question(**GOOD, kind="presence")
    assert found[1].sequence == "t1c"
    assert read_questions(save_questions(tmp_path / "again.jsonl", found)) == found
    plain = [GOOD | {"kind": "presence"}, GOOD | {"question": "Bright?", "answer": "no", "sequence": "t1c"}]
    assert read_questions(lines(tmp_path, *plain, "")) == found


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (GOOD | {"answr": "no"}, "did you mean 'answer'"),
        ({name: value for name, value in GOOD.items() if name != "question"}, "question Field required"),
        (GOOD | {"question": "  "}, "question is empty"),
        (GOOD | {"answer": " ."}, "answer is empty"),
        (GOOD | {"study": 7}, "study Input should be a valid string"),
        (GOOD | {"form": "half"}, "form Input should be 'closed' or 'open'"),
        (GOOD | {"sequence": "../T1;"}, "sequence is no name of a sequence"),
        ("[1, 2]", "not one JSON object"),
        ('{"subject": "ANNA"', "not one JSON object"),
        (
            GOOD | {"question": "is  there a MASS?", "answer": "no"},
            "the same question about the same study as in",
        ),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_names_nobody(tmp_path, bad, said):
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 3: ") as error:
        read_questions(lines(tmp_path, GOOD, "", bad))
    assert said in str(error.value)
    assert "ANNA" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('subject,study,question,answer\nANNA,1,"Two\nlines?",yes\nANNA,1,Short?\n', "line 4: not as many cells"),
        ("subject,study,question,answer\nANNA,1,Long?,yes,more\n", "line 2: not as many cells"),
        ('subject,study,question,answer\nANNA,1,"Open?,yes\n', "line 2: unexpected end of data"),
        ("subject,study,question\nANNA,1,Open?\n", "line 2: answer Field required"),
        ("subject,study,question,answer\n", "holds no question"),
    ],
)
def test_a_bad_row_of_a_csv_is_told_by_the_line_on_which_it_begins(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as error:
        read_questions(table(tmp_path, text))
    assert "ANNA" not in str(error.value)


def test_a_question_twice_is_kept_once_and_about_another_series_it_is_another(tmp_path):
    other = GOOD | {"answer": "no", "sequence": "flair"}
    assert len(read_questions(lines(tmp_path, GOOD, GOOD | {"answer": "YES"}, other))) == 2


def test_what_is_no_table_of_questions_is_refused(tmp_path):
    (tmp_path / "questions.txt").write_text("x")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("subject,study,question,answer\na,1,Größe?,x\n".encode("latin-1"))
    for name, said in (("questions.txt", "no file that ends in"), ("no.csv", "no file"), ("latin.csv", "not UTF-8")):
        with pytest.raises(ValueError, match=said):
            read_questions(tmp_path / name)


def test_an_answer_is_compared_without_case_spaces_and_full_stop():
    assert plain_answer("  Left\n Upper lobe. ") == "left upper lobe"
    assert plain_answer("1.5 cm") == "1.5 cm"
