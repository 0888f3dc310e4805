# SPDX-License-Identifier: Apache-2.0
"""The console script: its output, its files and its exit codes."""

import contextlib
import gzip
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from finetune_trainer.check.__main__ import app
from finetune_trainer.check.terminal import fold_path, translate_hint
from finetune_trainer.manifest import Manifest
from finetune_trainer.rows import SPLIT_FILES
from tests.waiting import eventually

DOCS = Path(__file__).parents[2] / "docs"
CLEAN, WARNINGS, INVALID = 0, 1, 2

TOPICS = ("billing", "delivery", "login", "returns", "warranty")


def good_rows(count: int = 300) -> list[dict[str, str]]:
    """Rows that differ enough not to be near duplicates."""
    return [
        {
            "prompt": " ".join(
                f"{topic}{number * prime}" for topic, prime in zip(TOPICS, (2, 3, 5, 7, 11), strict=True)
            ),
            "completion": TOPICS[number % 3],
        }
        for number in range(count)
    ]


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def check(folder: Path, *arguments: str, columns: int = 100) -> Result:
    """Run it in a folder, on a terminal with this number of columns."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(
            app, arguments, env={"COLUMNS": str(columns), "NO_COLOR": "1"}, catch_exceptions=False
        )


def words(text: str) -> str:
    """The text without line breaks and frames."""
    return " ".join(text.replace("│", " ").split())


def test_clean_rows_exit_with_0_and_the_verdict(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows())

    done = check(tmp_path, "rows.jsonl")

    assert (done.exit_code, done.stderr) == (CLEAN, "")
    assert done.stdout.startswith("Ready to train: 300 rows\nNo problems found.\n")
    assert "300 rows kept: train" in done.stdout
    assert "billing" in done.stdout


def test_warnings_alone_exit_with_1_and_are_printed(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows(50))

    done = check(tmp_path, "rows.jsonl")

    assert done.exit_code == WARNINGS
    assert done.stdout.startswith("Ready to train: 50 rows\n")
    assert "warning: " in done.stdout


def test_bad_rows_exit_with_2_and_a_table_of_problems(tmp_path: Path) -> None:
    rows: list[Any] = good_rows()
    rows[6] = {"prompt": "a", "completion": ""}
    rows[8] = '{"prompt": '
    write(tmp_path / "rows.jsonl", rows)

    done = check(tmp_path, "rows.jsonl", columns=160)

    assert done.exit_code == INVALID
    assert done.stdout.startswith("2 of 300 rows cannot be used\nThe remaining 298 rows can be used.\n")
    lines = [words(line) for line in done.stdout.splitlines()]
    assert "Where Column What is wrong What to do" in lines
    assert (
        "row 7 completion completion is empty; expected text fill completion in, or remove the row" in lines
    )
    assert any(line.startswith("row 9 not valid JSON") for line in lines)


def test_the_table_fits_into_80_columns(tmp_path: Path) -> None:
    write(tmp_path / "a-file-with-a-rather-long-name.jsonl", [*good_rows(), {"question": "a" * 200}])
    write(tmp_path / "b.jsonl", good_rows(2))

    done = check(tmp_path, ".", columns=80)

    lines = [line for line in done.stdout.splitlines() if not line.startswith("digest ")]
    assert max(map(len, lines)) <= 80


def test_the_requested_number_of_problems_is_listed_and_the_rest_counted(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*good_rows(), *({"prompt": "", "completion": "b"} for _ in range(30))])

    done = check(tmp_path, "rows.jsonl", "--problems", "5")

    assert done.stdout.count("prompt is empty") == 5
    assert "25 more problems" in done.stdout
    assert "30   Fields are empty" in done.stdout


def test_conflicting_and_leaked_rows_are_named(tmp_path: Path) -> None:
    rows = [*good_rows(300), {**good_rows(1)[0], "completion": "another"}]
    rows = [{**row, "part": "train" if number else "test"} for number, row in enumerate(rows)]
    write(tmp_path / "rows.jsonl", [*rows, {**rows[5], "completion": "another"}])

    output = words(check(tmp_path, "rows.jsonl", "--split-column", "part").output)

    assert "row 301 is a training row and the same as the held-out row 1" in output
    assert "row 302 has a different answer than row 6" in output


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("name it in columns.completion", "name it in --completion"),
        ("map the fields in columns, or set format", "map the fields in --columns, or set --format"),
        ("set checks.emailAddresses: Redact", "set --email-addresses Redact"),
        ("add rows, or set split.test: 0", "add rows, or set --test 0"),
        ("correct part, or remove split.column", "correct part, or remove --split-column"),
        ("set split.fromFiles: true", "set --split-from-files"),
        ("set format: KTO (columns.label names it)", "set --format KTO (--label names it)"),
        (
            "set columns: {prompt: question, completion: answer}",
            "set --prompt question --completion answer",
        ),
        (
            'set template: "{context} {question}" and columns: {completion: answer}',
            'set --template "{context} {question}" --completion answer',
        ),
        (
            'set columns: {prompt: " question", completion: answer}',
            "set --prompt ' question' --completion answer",
        ),
        ("or name it in keepColumns", "or name it in --keep-column"),
    ],
)
def test_hints_name_options_of_the_command_line(hint: str, said: str) -> None:
    assert translate_hint(hint) == said


@pytest.mark.parametrize(
    ("row", "guessed", "block", "options"),
    [
        (
            {"question": "a", "answer": "b"},
            "prompt = question, completion = answer",
            "columns: {prompt: question, completion: answer}",
            "--prompt question --completion answer",
        ),
        (
            {"Input": "a", "Output": "b", "id": 1},
            "prompt = Input, completion = Output",
            "columns: {prompt: Input, completion: Output}",
            "--prompt Input --completion Output",
        ),
        (
            {"prompt": "a", "response": "b"},
            "completion = response",
            "columns: {completion: response}",
            "--completion response",
        ),
        (
            {"id": 1, "date": "2026-01-05", "message": "a", "team": "b", "lang": "en"},
            "prompt = message, completion = team",
            "columns: {prompt: message, completion: team}",
            "--prompt message --completion team",
        ),
        (
            {"text": "a", "label": "b"},
            "prompt = text, completion = label",
            "columns: {prompt: text, completion: label}",
            "--prompt text --completion label",
        ),
        (
            {"instruction": "a", "context": "c", "response": "b"},
            "completion = response, template = {context} {instruction}",
            'template: "{context} {instruction}" and columns: {completion: response}',
            "--template '{context} {instruction}' --completion response",
        ),
    ],
    ids=["questions", "capitals", "prompt", "tickets", "classes", "Dolly"],
)
@pytest.mark.parametrize("form", ["JSON Lines", "CSV"])
def test_columns_with_other_usual_names_are_guessed_and_the_guess_is_said(
    tmp_path: Path, *, row: dict[str, Any], guessed: str, block: str, options: str, form: str
) -> None:
    rows = [{**row, next(iter(row)): f"number {number}"} for number in range(30)]
    if form == "CSV":
        lines = [",".join(row), *(",".join(map(str, each.values())) for each in rows)]
        (tmp_path / "rows").write_text("\n".join(lines))
    else:
        write(tmp_path / "rows", rows)

    done = check(tmp_path, "rows", columns=300)

    assert done.exit_code == WARNINGS
    assert f"rows ({form}) has the columns {', '.join(row)}." in done.stdout
    assert f"Guessed by their names: {guessed}. To change it: --" in done.stdout
    assert f"In the source of a Dataset: {block}\n" in done.stdout
    named = check(tmp_path, "rows", *shlex.split(options), columns=300)
    assert "Guessed" not in named.stdout
    assert named.stdout in done.stdout


@pytest.mark.parametrize(
    ("content", "columns", "options"),
    [
        ("id,alpha,beta\n1,{n},x\n", "the columns id, alpha, beta", "--prompt alpha --completion beta"),
        ("the beta,alpha\nx,{n}\n", "the columns the beta, alpha", "--prompt alpha --completion 'the beta'"),
        ('{{"alpha": "{n}", "beta": "x"}}\n', "the columns alpha, beta", "--prompt alpha --completion beta"),
        ("a,b\n1,2\n", "the columns a, b", "--prompt a --completion b"),
    ],
    ids=["CSV", "spaces", "JSON", "no texts"],
)
def test_columns_that_nobody_can_guess_are_listed_with_a_ready_command(
    tmp_path: Path, content: str, columns: str, options: str
) -> None:
    header, *row = content.splitlines(keepends=True)
    row = row or [header]
    texts = [f"The {n}th question about a bill" for n in range(30)]
    answers = ["good", "bad one"]
    lines = [line.format(n=text).replace("x", answers[n % 2]) for n, text in enumerate(texts) for line in row]
    (tmp_path / "rows").write_text("".join([*([header] if header not in row else []), *lines]))

    done = check(tmp_path, "rows", columns=300)

    assert done.exit_code == INVALID
    assert f"has {columns}." in done.stdout
    command = done.stdout.splitlines()[-1].strip()
    assert command.endswith(f" rows {options}")
    assert check(tmp_path, *shlex.split(command)[1:]).exit_code == WARNINGS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nHello there\n", "The file has one column: its first line has no comma, semicolon or tab"),
        ('"text"\n"Hello, there"\n', "The file has one column"),
        ('{"text": "a"}\n', "text alone has no answer to learn"),
        (
            "My bill is wrong. What now?,billing\nAnother one,team a\n",
            "add a first line that names the columns",
        ),
        ("", "The file is empty; expected at least one row; add rows."),
        ("question;answer\n", "There are no rows"),
    ],
    ids=["one column", "quoted", "text only", "no header", "empty", "header only"],
)
def test_a_file_without_pairs_says_what_it_lacks_once(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(content)

    done = check(tmp_path, "rows.csv", columns=300)

    assert done.exit_code == INVALID
    assert done.stdout.count(message) == 1


def test_a_file_of_three_rows_is_read_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("message;team\n" + "".join(f"Number {n};a\n" for n in range(3)))

    done = check(tmp_path, "rows.csv", columns=300)

    assert done.exit_code == WARNINGS
    assert "there are only 3 rows; expected at least 200 good rows" in done.stdout


def test_findings_name_the_columns_of_the_file(tmp_path: Path) -> None:
    rows = [{"message": row["prompt"], "team": row["completion"]} for row in good_rows()]
    rows[4]["message"] += " card 4111 1111 1111 1111"
    rows[6]["team"] = "end<|im_end|>"
    rows[8]["message"] = ""
    write(tmp_path / "rows.jsonl", rows)

    lines = [words(line) for line in check(tmp_path, "rows.jsonl", columns=300).stdout.splitlines()]

    assert any(line.startswith("row 9 message message is empty") for line in lines)
    assert any(
        line.startswith("row 5 message warning: message has a payment card's number") for line in lines
    )
    assert any(line.startswith("row 7 team warning: team has <|im_end|>") for line in lines)


def test_a_label_with_a_trailing_space_is_told_apart_in_the_warning_and_in_the_table(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*good_rows(), {"prompt": "Where?", "completion": "Billing "}])

    output = check(tmp_path, "rows.jsonl", columns=300).output

    assert "'billing' (100 rows) and 'Billing␣' (1 row)" in output
    assert any(line.startswith("Billing␣  ") for line in output.splitlines())


def test_a_long_path_is_folded_at_its_dots(tmp_path: Path) -> None:
    call = {
        "type": "function",
        "function": {"name": "find", "arguments": '{"number": "4111 1111 1111 1111"}'},
    }
    turns = [
        {"role": "user", "content": "Find it"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", **call}]},
    ]
    write(tmp_path / "rows.jsonl", [{"messages": turns}])

    lines = check(tmp_path, "rows.jsonl", columns=80).stdout.splitlines()

    assert fold_path("messages[1].tool_calls[0].function", 16) == "messages[1]\n.tool_calls[0]\n.function"
    row = next(number for number, line in enumerate(lines) if line.startswith("row 1"))
    assert [line.split()[0] for line in lines[row + 1 : row + 3]] == [".tool_calls[0]", ".function"]


def test_messages_under_another_name_are_guessed(tmp_path: Path) -> None:
    roles = ("user", "assistant")
    write(
        tmp_path / "rows.jsonl",
        ({"dialog": [{"role": role, "content": f"{role} {n}"} for role in roles]} for n in range(30)),
    )

    done = check(tmp_path, "rows.jsonl", columns=300)

    assert done.exit_code == WARNINGS
    assert "Guessed by their names: messages = dialog. To change it: --messages COLUMN" in done.stdout


def test_rows_of_text_only_are_refused_with_what_they_lack(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"text": "### Human: a ### Assistant: b"}])

    done = check(tmp_path, "rows.jsonl", columns=300)

    assert done.exit_code == INVALID
    assert "write each row as a prompt and its completion: text alone has no answer to learn" in words(
        done.output
    )
    assert "--columns" not in done.output


def test_turns_of_sharegpt_under_another_name_are_recognized(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    write(tmp_path / "rows.jsonl", [{"dialog": turns}])

    assert "rename dialog to conversations" in words(check(tmp_path, "rows.jsonl", columns=300).output)


def test_columns_that_the_format_does_not_read_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows())

    output = words(check(tmp_path, "rows.jsonl", "--messages", "turns").output)

    assert "--messages is not used, because the rows are PromptCompletion" in output


def test_control_sequences_of_a_model_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*good_rows(), {"prompt": "Hello", "completion": "Hi<|im_end|>"}])

    output = words(check(tmp_path, "rows.jsonl", columns=200).output)

    assert "completion has <|im_end|>, which a model reads as" in output


def test_characters_that_act_on_a_terminal_are_escaped(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*good_rows(), {"\x1b[2J[bold]": "a"}])

    done = check(tmp_path, "rows.jsonl")

    assert "\x1b" not in done.stdout
    assert "[bold]" in "".join(done.stdout.split())


def test_the_reports_are_written_and_fit_the_schema(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*good_rows(), {"prompt": "a"}, *good_rows(1)])

    done = check(tmp_path, "rows.jsonl", "--report", "report.json", "--html", "report.html")

    assert done.exit_code == INVALID
    report = json.loads((tmp_path / "report.json").read_bytes())
    Draft202012Validator(json.loads((DOCS / "report.schema.json").read_text())).validate(report)
    assert (report["source"], report["format"]) == ("rows.jsonl", "PromptCompletion")
    assert (report["rows"], report["validRows"], report["keptRows"]) == (302, 301, 300)
    assert report["problems"][0]["record"] == 301
    assert "1 of 302 rows cannot be used" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "report written to report.json" in done.stdout


def test_the_prepared_rows_are_written_and_the_digest_is_that_of_the_store(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows())

    done = check(tmp_path, "rows.jsonl", "--output", "prepared/rows")

    folder = tmp_path / "prepared" / "rows"
    assert sorted(path.name for path in folder.iterdir()) == sorted(SPLIT_FILES.values())
    assert sum(len((folder / name).read_text().splitlines()) for name in SPLIT_FILES.values()) == 300
    assert f"digest {Manifest.of(folder).digest}\n" in done.stdout


def test_another_seed_makes_another_split(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows())

    for seed in ("0", "1"):
        check(tmp_path, "rows.jsonl", "--seed", seed, "--output", seed)

    assert (tmp_path / "0" / "test.jsonl").read_bytes() != (tmp_path / "1" / "test.jsonl").read_bytes()


def test_files_of_a_folder_and_of_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = good_rows()
    write(tmp_path / "rows" / "b.jsonl", rows[:150])
    (tmp_path / "rows" / "a.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in rows[150:]).encode())
    )
    (tmp_path / "rows" / "readme.md").write_text("no rows")

    by_folder = check(tmp_path, "rows", "--report", "folder.json")
    by_pattern = check(tmp_path, "rows/*.jsonl*", "rows/b.jsonl", "--report", "pattern.json")

    assert (by_folder.exit_code, by_pattern.exit_code) == (CLEAN, CLEAN)
    reports = [json.loads((tmp_path / name).read_text()) for name in ("folder.json", "pattern.json")]
    assert [file["name"] for file in reports[0]["files"]] == ["a.jsonl.gz", "b.jsonl"]
    assert reports[0]["digest"] == reports[1]["digest"]
    assert reports[0]["files"] == reports[1]["files"]


def test_files_of_one_name_in_two_folders_keep_their_folders(tmp_path: Path) -> None:
    write(tmp_path / "a" / "rows.jsonl", good_rows())
    write(tmp_path / "b" / "rows.jsonl", [*good_rows(1), {"prompt": "a"}])

    done = check(tmp_path, "a/rows.jsonl", "b/rows.jsonl")

    assert "b/rows.jsonl, row 2" in words(done.stdout)


def test_columns_are_mapped_in_one_option_or_in_several(tmp_path: Path) -> None:
    rows = ["text,topic", *(f"{row['prompt']},{row['completion']}" for row in good_rows())]
    write(tmp_path / "rows.csv", rows)

    together = check(tmp_path, "rows.csv", "--columns", "prompt=text,completion=topic")
    single = check(tmp_path, "rows.csv", "--prompt", "text", "--completion", "topic")

    assert (together.exit_code, together.stdout) == (CLEAN, single.stdout)


def test_a_template_makes_the_prompt_and_may_have_line_breaks(tmp_path: Path) -> None:
    rows = ["subject,body,topic", *(f"{row['prompt']},hello,{row['completion']}" for row in good_rows())]
    write(tmp_path / "rows.csv", rows)

    done = check(
        tmp_path, "rows.csv", "--template", r"{subject}\n{body}", "--completion", "topic", "--output", "out"
    )

    assert done.exit_code == CLEAN
    first = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert first["prompt"].endswith("\nhello")


def test_the_action_for_personal_data_is_an_option(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*good_rows(), {"prompt": "ask jo@example.com", "completion": "billing"}])

    codes = {
        finding: check(tmp_path, "rows.jsonl", "--email-addresses", finding).exit_code
        for finding in ("off", "Warn", "fail")
    }

    assert codes == {"off": CLEAN, "Warn": WARNINGS, "fail": INVALID}


WRONG_OPTIONS: list[tuple[list[str], str]] = [
    (["--format", "xml"], "--format"),
    (["--columns", "prompt"], "--columns: 'prompt' has no column; write it as prompt=COLUMN"),
    (["--columns", "question=text"], "--columns: 'question' is not one of prompt, completion"),
    (["--columns", "prompt=a", "--prompt", "b"], "--columns: prompt is set twice; set it once"),
    (["--prompt", "a", "--completion", "a"], "--completion: prompt and completion are both 'a'; name two"),
    (["--prompt", ""], "--prompt: the value is empty; name a column"),
    (["--prompt", "a", "--template", "{b}"], "--template: it replaces the column of the prompt"),
    (["--template", "{body"], "--template: expected '}' before end of string; write {{ and }} for literal"),
    (["--template", "body"], "--template: it names no column; write {column}"),
    (["--validation", "0.5", "--test", "0.5"], "--validation and --test: their sum must be below 1"),
    (["--validation", "2"], "--validation"),
    (["--group-by", "a", "--split-column", "b"], "--group-by: --split-column already gives the splits"),
    (["--split-from-files", "--split-column", "b"], "--split-from-files: --split-column already gives"),
    (["--phone-region", "XX"], "--phone-region: 'XX' is not a country code; write two letters, such as DE"),
    (["--secrets", "perhaps"], "--secrets"),
    (["--reprot", "a.json"], "No such option: --reprot"),
    (["--report", "nowhere/report.json"], "--report: the folder nowhere does not exist; create it"),
    (["--html", "rows.jsonl"], "--html: rows.jsonl is an input file; name another file"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_a_wrong_option_is_named_before_any_row_is_read(
    tmp_path: Path, options: list[str], message: str
) -> None:
    write(tmp_path / "rows.jsonl", good_rows(3))

    done = check(tmp_path, "rows.jsonl", *options, columns=160)

    assert (done.exit_code, done.stdout) == (INVALID, "")
    assert message in words(done.stderr)
    assert "Traceback" not in done.stderr


def test_the_folder_of_the_source_is_not_written_to(tmp_path: Path) -> None:
    source = write(tmp_path / "train.jsonl", good_rows(3))
    before = source.read_bytes()

    done = check(tmp_path, "train.jsonl", "--output", ".")

    assert done.exit_code == INVALID
    assert "--output: . has input files; name another folder" in words(done.stderr)
    assert source.read_bytes() == before


MISSING: list[tuple[str, str]] = [
    ("rows.json", "rows.json: not found; the folder has: rows.jsonl; correct the name"),
    (
        "nowhere/rows.jsonl",
        "nowhere/rows.jsonl: not found; the folder nowhere does not exist either; correct",
    ),
    ("*.csv", "*.csv: no file matches; correct the pattern"),
    ("empty", "empty: the folder has no file with a supported extension (.csv .json .jsonl"),
]


@pytest.mark.parametrize(("name", "message"), MISSING)
def test_a_missing_file_exits_with_2_and_names_the_files_of_its_folder(
    tmp_path: Path, name: str, message: str
) -> None:
    write(tmp_path / "rows.jsonl", good_rows(3))
    (tmp_path / "empty").mkdir()

    done = check(tmp_path, name)

    assert (done.exit_code, done.stdout) == (INVALID, "")
    assert done.stderr.startswith(f"finetune-check: {message}")


def test_an_unreadable_file_exits_with_2(tmp_path: Path) -> None:
    done = check(tmp_path, "/proc/self/mem")

    assert (done.exit_code, done.stdout) == (INVALID, "")
    assert done.stderr == "finetune-check: /proc/self/mem: Input/output error\n"


def test_a_file_of_unknown_format_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK\x03\x04" + bytes(100))

    done = check(tmp_path, "rows.xlsx", "--report", "report.json", "--html", "report.html")

    assert done.exit_code == INVALID
    assert done.stdout.startswith("The source cannot be read\n")
    assert json.loads((tmp_path / "report.json").read_text())["brokenFiles"] == 1
    assert "The source cannot be read" in (tmp_path / "report.html").read_text()


def test_an_internal_error_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows(3))

    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "finetune_trainer.check", "rows.jsonl"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert done.returncode not in (CLEAN, WARNINGS, INVALID)
    assert done.stderr.startswith(b"finetune-check failed; please report this error")


def test_help_imports_no_heavy_libraries() -> None:
    program = (
        "import sys\n"
        "from finetune_trainer.check.__main__ import main\n"
        "sys.argv = ['finetune-check', '--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*sorted({name.split('.')[0] for name in sys.modules}), sep='\\n', file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)

    loaded = set(done.stderr.split())
    heavy = {
        "torch",
        "transformers",
        "pydantic",
        "numpy",
        "pyarrow",
        "scipy",
        "datasketch",
        "jinja2",
        "ijson",
    }
    assert "typer" in loaded
    assert loaded & heavy == set()
    assert "Exit code 0: clean. 1: warnings only. 2:" in words(done.stdout)


def test_a_whole_check_needs_no_machine_learning_stack(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows())
    program = (
        "import sys\n"
        "from finetune_trainer.check.__main__ import main\n"
        "sys.argv = ['finetune-check', 'rows.jsonl', '--html', 'report.html']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*sorted({name.split('.')[0] for name in sys.modules}), sep='\\n', file=sys.stderr)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )

    assert {"torch", "transformers", "datasets", "tokenizers"} & set(done.stderr.split()) == set()


def test_a_large_file_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    rows = good_rows(600)
    write(tmp_path / "rows.jsonl", [{**row, "prompt": row["prompt"] + " word" * 2000} for row in rows])
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer.check", "rows.jsonl", "--near-duplicates", "off"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=end,
    )
    os.close(end)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:
        # Linux reports that the other end of a terminal is closed.
        pass
    finally:
        os.close(terminal)
    output, _ = process.communicate(timeout=60)

    assert b"Reading" in shown
    assert b"MiB" in shown
    assert output.startswith(b"Ready to train: 600 rows")


def test_sigterm_leaves_no_copy_of_the_rows(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows(200_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer.check", "rows.jsonl", "--output", "out"], cwd=tmp_path
    )
    eventually("rows are written", lambda: list(tmp_path.glob("out/.finetune-check-*/train.jsonl")), 60)

    process.terminate()

    assert process.wait(60) == 128 + signal.SIGTERM
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unwritable_report_is_reported_before_rows_are_read(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", good_rows(1))

    done = check(tmp_path, "rows.jsonl", "--report", "/proc/report.json")

    assert done.exit_code == INVALID
    assert "/proc/report.json cannot be written" in words(done.stderr)
