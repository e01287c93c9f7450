"""Which column is what: nothing is guessed in silence, and no first row is lost."""

import gzip
import json
from pathlib import Path

import pytest

from csrec_dist.data.columns import Columns, Layout
from csrec_dist.data.log import Log
from csrec_dist.data.readers import detect
from csrec_dist.data.reading import read_log
from csrec_dist.errors import UserError

TIME_NAMES = """
event_time created_at t_dat timeframe showTime utc_time review_time time_ms click_time date_added Timestamp(ms)
unix_timestamp event_timestamp timestamp_ms interaction_time EVENT_TIME Date timestamp
"""
BY_POSITION = r"dataset\.header: false and give the columns by position, such as dataset\.columns: \{user: 1"


def read(path: Path, header: bool | None = None, encoding: str | None = None, **columns: str | int) -> Log:
    layout = Layout(Columns(**columns), header, encoding)
    return read_log([path], detect(path, layout), layout)


def items_of(log: Log) -> list:
    return log.items[log.frame["item"]].to_list()


def write(folder: Path, text: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", TIME_NAMES.split())
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_usual_names_of_the_time_are_taken(tmp_path, name, form):
    rows = [("d", 4), ("a", 1), ("c", 3), ("b", 2)]
    lines = [f"u1,{item},{time}" for item, time in rows]
    if form == "csv":
        path = write(tmp_path, "\n".join([f"user_id,item_id,{name}", *lines]) + "\n")
    else:
        objects = [{"user_id": "u1", "item_id": item, name: time} for item, time in rows]
        path = write(tmp_path, "".join(json.dumps(record) + "\n" for record in objects))
    log = read(path)
    assert items_of(log) == ["a", "b", "c", "d"]
    assert log.taken["timestamp"] == name


@pytest.mark.parametrize("text", ["user,item,when\n1,2,3\n", '{"user": 1, "item": 2, "when": 3}\n'])
def test_a_log_without_a_time_asks_for_one(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=r"columns are user, item, when: .*dataset\.columns\.timestamp: none if"):
        read(path)
    assert read(path, timestamp="when").has_times
    assert not read(path, timestamp="none").has_times


def test_a_column_without_any_time_is_not_one(tmp_path):
    path = write(tmp_path, "user,item,time\n1,2,\n1,3,\n")
    with pytest.raises(UserError, match="the column time has no timestamps"):
        read(path)


def test_roles_can_be_switched_off(tmp_path):
    path = write(tmp_path, "user,item,rating,time\n1,2,good,soon\n1,3,bad,late\n")
    log = read(path, rating="none", timestamp="none")
    assert log.frame["rating"].to_list() == [None, None]
    assert items_of(log) == [2, 3]


def test_no_single_object_decides_for_all(tmp_path):
    objects = [
        {"user_id": "u1", "item_id": "d"},
        {"user_id": "u1", "item_id": "a", "timestamp": 1, "rating": 5},
        {"user_id": "u1", "item_id": "c", "timestamp": 3, "true_item": "a"},
        {"user_id": "u1", "item_id": "b", "timestamp": 2},
    ]
    log = read(write(tmp_path, "".join(json.dumps(record) + "\n" for record in objects)))
    assert items_of(log) == ["a", "b", "c"]
    assert (log.num_without_time, log.num_without_id) == (1, 0)
    assert log.frame["rating"].to_list() == [5.0, None, None]
    assert log.items.gather(log.frame["true_item"].drop_nulls()).to_list() == ["a"]


def test_fields_whose_types_nothing_unites_do_not_hide_the_others(tmp_path):
    text = '{"user": 1, "item": 2, "x": 3}\n{"user": 1, "item": 4, "x": [5], "time": 6}\n{"user": 1, "x": {"y": 1}}\n'
    log = read(write(tmp_path, text))
    assert (items_of(log), log.num_without_id, log.num_without_time) == ([4], 1, 1)


def test_a_line_that_is_no_object_is_named(tmp_path):
    text = '{"user": 1, "item": 2, "x": 3}\n{"user": 1, "x": [5]}\n[6]\n'
    with pytest.raises(UserError, match=r", line 3: it is no JSON object: '\[6\]"):
        read(write(tmp_path, text))


@pytest.mark.parametrize("nested", ["[1, 2]", '{"id": 1}'])
@pytest.mark.parametrize("first", ["1", '"x"'])
def test_an_id_is_no_list_or_object(tmp_path, nested, first):
    text = f'{{"user": 1, "item": {first}, "time": 1}}\n{{"user": 1, "item": {nested}, "time": 2}}\n'
    with pytest.raises(UserError, match=r"'item' of line 2 is .* where a number or a text is needed"):
        read(write(tmp_path, text))


@pytest.mark.parametrize("item", ["[deleted]", "[1]", "{x"])
def test_text_in_brackets_is_an_id(tmp_path, item):
    assert items_of(read(write(tmp_path, json.dumps({"user": 1, "item": item, "time": 1}) + "\n"))) == [item]


SESSIONS = """sessionId;userId;itemId;timeframe;eventdate
1;NA;10;500;2016-05-09
1;NA;11;100;2016-05-09
2;NA;13;3;2016-05-09
"""


def test_a_part_of_a_users_sequence_is_no_question(tmp_path):
    text = "event_time,product_id,user_id,user_session\n2019-10-01 00:00:01 UTC,1,7,a\n2019-10-01 00:00:00 UTC,2,7,b\n"
    log = read(write(tmp_path, text))
    assert (log.taken["user"], log.passed_over, items_of(log)) == ("user_id", ("user_session",), [2, 1])


def test_users_and_sessions_are_a_question(tmp_path):
    path = write(tmp_path, SESSIONS)
    with pytest.raises(UserError, match=r"dataset\.columns\.user: userId or dataset\.columns\.user: sessionId"):
        read(path)
    log = read(path, user="sessionId")
    assert (log.users.to_list(), items_of(log)) == ([1, 2], [11, 10, 13])


@pytest.mark.parametrize(
    "columns", [{"user": "a", "item": "a"}, {"item": "b", "timestamp": "b"}, {"rating": "a", "true_item": "a"}]
)
def test_two_roles_never_share_a_column(columns):
    with pytest.raises(ValueError, match="give each its own column"):
        Columns(**columns)


def test_a_named_column_is_not_guessed_for_another_role(tmp_path):
    with pytest.raises(UserError, match="no column that looks like the item"):
        read(write(tmp_path, "item,time\n1,2\n"), user="item")
    with pytest.raises(UserError, match="give each its own column"):
        read(write(tmp_path, "a:token\tb:token\tc:float\n1\t2\t3\n", "x.inter"), user="a", item="a:token")


HEADERLESS = {
    "action": ("1,14,40,0\n1,11,10,0\n1,13,30,2\n", {"user": 1, "item": 2, "timestamp": 3}, [11, 13, 14]),
    "YooChoose": ("1,2014-04-08T17:00:18.129Z,7,0\n1,2014-04-08T17:00:17.140Z,8,S\n",
                  {"user": 1, "item": 3, "timestamp": 2}, [8, 7]),
    "Taobao": ("1,22,25,pv,1400001127\n1,23,25,buy,1400001126\n", {"user": 1, "item": 2, "timestamp": 5}, [23, 22]),
    "Steam": ('15,"Sid Meier\'s, V ",purchase,1.0,0\n15,"Spore",play,2.0,0\n',
              {"user": 1, "item": 2, "timestamp": "none"}, ["Sid Meier's, V ", "Spore"]),
    "Gowalla": ("0\t2014-05-13T17:47:32Z\t30.2\t-97.7\t28\n0\t2014-05-13T17:44:04Z\t30.2\t-97.7\t25\n",
                {"user": 1, "item": 5, "timestamp": 2}, [25, 28]),
    "LFM": ("u_1\t2014-05-13T17:47:32Z\tf1\tA\t\tT\nu_1\t2014-05-13T17:36:51Z\tf2\tB\t\tT\n",
            {"user": 1, "item": 3, "timestamp": 2}, ["f2", "f1"]),
    "pairs": ("1\t2\n1\t3\n", {"user": 1, "item": 2, "timestamp": "none"}, [2, 3]),
    "long separator": ("1::5::20\n1::6::10\n", {"user": 1, "item": 2, "timestamp": 3}, [6, 5]),
    "spaces": ("7 3 5 1400001127\n7 4 5 1400001126\n", {"user": 1, "item": 2, "timestamp": 4}, [4, 3]),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERLESS)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_first_row_of_data_is_never_taken_for_a_header(tmp_path, case, zipped):
    text, columns, items = HEADERLESS[case]
    path = write(tmp_path, gzip.compress(text.encode()) if zipped else text)
    with pytest.raises(UserError, match=BY_POSITION):
        read(path)
    log = read(path, header=False, **columns)
    assert items_of(log) == items


def test_a_header_with_spaces_between_usual_names_is_one(tmp_path):
    assert items_of(read(write(tmp_path, "user item time\nu b 2\nu a 1\n"))) == ["a", "b"]


@pytest.mark.parametrize("separator", ["#", " ", "|", ";", "\t", "::"])
def test_the_separator_of_a_header_is_detected(tmp_path, separator):
    rows = [("user", "item", "time"), ("u#", "b", "2"), ("u#", "a", "1")]
    text = "\n".join(separator.join(row) for row in rows).replace("u#", "u" if separator == "#" else "u#") + "\n"
    assert items_of(read(write(tmp_path, text))) == ["a", "b"]


@pytest.mark.parametrize("separator", ["#", "||", "~", "-:-"])
def test_a_separator_can_be_said(tmp_path, separator):
    text = "\n".join(separator.join(row) for row in (("b", "u", "2"), ("a,;", "u", "1"))) + "\n"
    layout = Layout(Columns(item=1, user=2, timestamp=3), header=False, separator=separator)
    path = write(tmp_path, text)
    assert items_of(read_log([path], detect(path, layout), layout)) == ["a,;", "b"]


def test_the_refusal_shows_the_first_row_with_its_positions(tmp_path):
    with pytest.raises(UserError, match="1: '1', 2: '22', 3: '25', 4: 'pv', 5: '1400001127'"):
        read(write(tmp_path, HEADERLESS["Taobao"][0]))


def test_a_headerless_file_of_words_is_not_guessed_either(tmp_path):
    path = write(tmp_path, "anna,bread,monday\nanna,milk,tuesday\n")
    with pytest.raises(UserError, match=f"columns are anna, bread, monday: .*{BY_POSITION}"):
        read(path)
    assert items_of(read(path, header=False, user=1, item=2, timestamp="none")) == ["bread", "milk"]


def test_names_of_columns_may_be_numbers_where_it_is_said(tmp_path):
    path = write(tmp_path, "who,2019,what\nu,5,a\nu,4,b\n")
    columns = {"user": "who", "item": "what", "timestamp": "2019"}
    with pytest.raises(UserError, match=r"if it is the header, set dataset\.header: true"):
        read(path, **columns)
    assert items_of(read(path, header=True, **columns)) == ["b", "a"]
    usual = write(tmp_path, "user,item,time,2019\nu,a,5,1\n")
    assert items_of(read(usual)) == ["a"]


def test_a_position_beyond_the_columns_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has 3 columns, so there is no column 4 \(dataset\.columns\.timestamp\)"):
        read(write(tmp_path, "1,2,3\n"), header=False, user=1, item=2, timestamp=4)


BOOKS = '"User-ID";"ISBN";"Tïme"\r\n"7";"Café";"2"\r\n"7";"x";"1"\r\n'


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_encoding_can_be_named(tmp_path, encoding, zipped):
    data = BOOKS.encode(encoding)
    path = write(tmp_path, gzip.compress(data) if zipped else data)
    assert items_of(read(path, encoding=encoding, timestamp="Tïme")) == ["x", "Café"]


def test_text_that_is_not_utf8_names_the_key(tmp_path):
    text = "user,item,time\nu,a,1\nu,Café,2\n"
    with pytest.raises(UserError, match=r"line 3 of log\.csv is not UTF-8; name the encoding with dataset\.encoding"):
        read(write(tmp_path, text.encode("latin-1")))
    with pytest.raises(UserError, match=r"line 2 of log\.csv is not UTF-8; name the encoding with dataset\.encoding"):
        read(write(tmp_path, "user::item::time\nu::Café::2\n".encode("latin-1")))
    with pytest.raises(UserError, match=r"line 1 of log\.csv is not UTF-8; convert the log"):
        read(write(tmp_path, '{"user": "ü", "item": 1, "time": 2}\n'.encode("latin-1")))
    with pytest.raises(UserError, match=r"is not of dataset\.encoding ascii"):
        read(write(tmp_path, text), encoding="ascii")


def test_header_and_encoding_are_for_delimited_text(tmp_path):
    path = write(tmp_path, '{"user": 1, "item": 2, "time": 3}\n')
    for said in ({"header": False}, {"encoding": "latin-1"}):
        with pytest.raises(UserError, match=r"is of the form 'json_lines', and dataset\.header"):
            read(path, **said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{u'username': u'Chaos 1', u'product_id': u'7', u'text': u'" + "x" * 20_000 + "'}\n", "Python literals"),
        ("{'user': 1, 'item': 2, 'ok': True}\n", "Python literals for lines, not JSON; convert it first, with `python"),
        ("1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3 N4\n", "is the behaviors.tsv of MIND's test set"),
        (json.dumps([{"user": k, "item": k} for k in range(500)]), "is one JSON array; write one object a line"),
        ('{"user": 1,\n "item": 2}\n', "its first line is no whole object"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_forms_that_have_to_be_converted_are_named(tmp_path, text, message, zipped):
    path = write(tmp_path, gzip.compress(text.encode()) if zipped else text, "log.gz" if zipped else "log")
    with pytest.raises(UserError, match=message) as refused:
        read(path)
    assert len(str(refused.value)) < 500


def test_messages_stay_short_whatever_the_columns(tmp_path):
    names = [f"{'x' * 200}{number}" for number in range(300)]
    with pytest.raises(UserError, match="and 280 more") as refused:
        read(write(tmp_path, ",".join(names) + "\n" + ",".join(["1"] * 300) + "\n"))
    assert len(str(refused.value)) < 2500


@pytest.mark.parametrize(
    "text",
    [
        "1 2\n1 3\n3 4\n2 5\n",  # users not together: pairs, but not in SASRec's order
        "1 2 3 4\n2 5 6 7\n",  # as many fields in each line: a table
        "1 2 3\n1 4\n",  # a user twice
    ],
)
def test_sequence_forms_are_not_guessed_from_other_tables(tmp_path, text):
    with pytest.raises(UserError, match="no reader knows"):
        read(write(tmp_path, text))


def test_sequence_forms_keep_ids_of_any_type_where_they_are_named(tmp_path):
    layout = Layout()
    users = read_log([write(tmp_path, "anna bread  007 bread\nben milk\n")], "s3rec", layout)
    pairs = read_log([write(tmp_path, "anna bread\nanna 007\nanna bread\nben milk\n")], "sasrec", layout)
    for log in (users, pairs):
        assert [log.users[user] for user in log.frame["user"]] == ["anna", "anna", "anna", "ben"]
        assert items_of(log) == ["bread", "007", "bread", "milk"]


def test_parts_of_a_log_agree_on_their_columns(tmp_path):
    files = [write(tmp_path, "user,item,time\n1,2,3\n", "a"), write(tmp_path, "user,item,date\n1,2,3\n", "b")]
    with pytest.raises(UserError, match=r"columns for the timestamp are date and time"):
        read_log(files, "delimited", Layout())
