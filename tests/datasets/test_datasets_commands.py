"""The commands of `tfjob dataset`, over a real server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import Tfjob, eventually
from web_server import Status, WebServer


@pytest.fixture
def job(tfjob: Tfjob, tmp_path: Path) -> Tfjob:
    return Tfjob(tfjob.directory, {**tfjob.environ, "TFJOB_STORE": str(tmp_path / "store")})


def test_a_dataset_is_registered_from_a_file_and_nothing_is_copied(job: Tfjob, web: WebServer) -> None:
    job.write("data/l.txt", "local")
    url = web.put("a.txt", b"content")
    job.write("words.yml", f"name: words\ndescription: Two words\ntags: {{k: v}}\npaths: [{url}, data]\n")
    assert job("dataset", "create", "-f", "words.yml").stdout == "Registered words@1  (2 files, 12 B)\n"
    assert job("dataset", "create", "-f", "words.yml").stdout == "Unchanged: words@1  (2 files, 12 B)\n"
    assert [headers["Range"] for headers in web.asked("a.txt")] == ["bytes=0-0"] * 2
    assert not list(Path(job.environ["TFJOB_STORE"]).glob("datasets/objects/*/*"))
    (listed,) = json.loads(job("dataset", "list", "-o", "json").stdout)
    assert listed["full_name"] == "words@1"
    assert listed["description"] == "Two words"
    shown = job("dataset", "show", "words").stdout
    assert "Two words" in shown
    assert url in shown
    assert f"{job.directory}/data" in shown
    files = job("dataset", "files", "words@1").stdout
    assert [line.split()[:3] for line in files.splitlines()[1:]] == [["a.txt", "7", "B"], ["l.txt", "5", "B"]]


def test_a_changed_dataset_needs_a_word(job: Tfjob, web: WebServer) -> None:
    a, b = web.put("a.txt", b"a"), web.put("b.txt", b"b")
    job("dataset", "create", "--name", "words", "--path", a)
    refused = job("dataset", "create", "--name", "words", "--path", a, "--path", b, exit_code=2)
    assert "the dataset words exists, and its latest version 1 differs" in refused.stderr
    assert "--new-version" in refused.stderr
    done = job("dataset", "create", "--name", "words", "--path", a, "--path", b, "--new-version")
    assert "Registered words@2  (2 files, 2 B)" in done.stdout
    assert "Unchanged: words@2" in job("dataset", "create", "--name", "words", "--refresh").stdout
    assert "versions    2, 1" in job("dataset", "show", "words").stdout


def test_an_older_version_is_refreshed_by_its_own_paths(job: Tfjob) -> None:
    job.write("x/a", "x")
    job.write("y/a", "y")
    job("dataset", "create", "--name", "words", "--path", "x")
    job("dataset", "create", "--name", "words", "--path", "y", "--new-version")
    assert "Unchanged: words@1" in job("dataset", "create", "--name", "words@1", "--refresh").stdout
    job.write("x/a", "more of x")
    hint = job("dataset", "download", "words@1", "--to", "o", exit_code=4).stderr.splitlines()[-1]
    assert hint.endswith(": tfjob dataset create --name words@1 --refresh")
    assert "Registered words@3" in job("dataset", "create", "--name", "words@1", "--refresh").stdout
    job("dataset", "download", "words@3", "--to", "o")
    assert (job.directory / "o" / "a").read_text() == "more of x"
    assert "no version '7'" in job("dataset", "create", "--name", "words@7", "--refresh", exit_code=3).stderr


def test_all_problems_of_a_file_are_told_at_once(job: Tfjob) -> None:
    job.write(
        "words.yml",
        """\
        name: a b
        path: x
        paths:
          - gone.txt
          - ftp://host/a
          - https://me:hidden@host/a
          - https://host/a?X-Amz-Signature=1
          - {path: https://host/, sha256: abc}
          - {path: '*.txt', sha256: "0000"}
          - s3:///key
          - hdfs://me@host:8020/a
          - {path: 'https://host/a?token=hidden', sha256: "0000"}
          - {path: 'https://host/a?token=hidden', sha256: "1111"}
          - https://host/a%0Ab.csv
          - https://host/%1B
          - https://host/a%00b
          - https://host/2222
          - https://host/3333
        """.replace("0000", "0" * 64)
        .replace("1111", "1" * 64)
        .replace("2222", "x" * 256)
        .replace("3333", "%FF" * 255),
    )
    failed = job("dataset", "create", "-f", "words.yml", exit_code=2).stderr
    for line in (
        'words.yml:1:7: name: found text "a b"; a name',
        'words.yml:2:1: path: found the unknown key "path"; name, version, description, tags or paths is allowed',
        'words.yml:4:5: paths[0]: found "gone.txt", which does not exist',
        'words.yml:5:5: paths[1]: found the address "ftp://host/a"; https://, http://, s3://',
        'words.yml:6:5: paths[2]: found a password in the address "https://host/a"',
        'words.yml:7:5: paths[3]: found a signature (X-Amz-Signature) in the address "https://host/a"',
        'words.yml:8:12: paths[4].path: found "https://host/", whose last part is no name of a file',
        'words.yml:8:35: paths[4].sha256: found text "abc"; a SHA-256 as 64 digits',
        "words.yml:9:29: paths[5].sha256: found a sha256 for ",
        'words.yml:10:5: paths[6]: found "s3:///key", which names no bucket',
        'words.yml:11:5: paths[7]: found the user "me" in "hdfs://me@host:8020/a"; an address without one is allowed',
        'words.yml:12:12: paths[8].path: found a secret (token) in the address "https://host/a"',
        'words.yml:13:51: paths[9].sha256: found another sha256 for "https://host/a" than before; one for each',
        'words.yml:14:5: paths[10]: found "https://host/a%0Ab.csv", which gives its file a name that has a control character',
        'words.yml:15:5: paths[11]: found "https://host/%1B", which gives its file a name that has a control character',
        'words.yml:16:5: paths[12]: found "https://host/a%00b", which gives its file a name that has a control character',
        'words.yml:17:5: paths[13]: found "https://host/xxx',
        "a name that has a part of more than 255 bytes; a name of up to 255 bytes without control characters is allowed",
    ):
        assert line in failed
    assert "hidden" not in failed
    assert "paths[14]" not in failed  # 255 bytes that are no UTF-8


def test_names_that_are_no_utf8_stay_apart(job: Tfjob, web: WebServer) -> None:
    addresses = []
    for escaped, content in (("a%FF.csv", b"one"), ("a%FE.csv", b"two"), ("caf%C3%A9.csv", b"three")):
        web.put(escaped, content)
        addresses.append(web.url(escaped))
    paths = [argument for address in addresses for argument in ("--path", address)]
    assert "(3 files" in job("dataset", "create", "--name", "words", *paths).stdout
    job("dataset", "download", "words", "--to", "out")
    there = {os.fsencode(path.name): path.read_bytes() for path in (job.directory / "out").iterdir()}
    assert there == {b"a\xff.csv": b"one", b"a\xfe.csv": b"two", b"caf\xc3\xa9.csv": b"three"}
    job.write("job.yml", f"command: cat $TFJOB_DATASET_D/*\ndataset: {{d: {{paths: {json.dumps(addresses)}}}}}\n")
    printed = job("submit", "job.yml").stdout
    assert all(one in printed for one in ("one", "two", "three"))


def test_paths_on_the_command_line_are_checked_the_same_way(job: Tfjob) -> None:
    failed = job("dataset", "create", "--name", "x", "--path", "gone", "--path", "ftp://host/a", exit_code=2)
    assert failed.stderr.splitlines()[-1] == "tfjob: 2 problems"
    assert "from a file or from paths" in job("dataset", "create", "--name", "x", exit_code=2).stderr


def test_thousands_of_paths_come_from_a_text_file(job: Tfjob) -> None:
    for number in range(6):
        job.write(f"data/{number}", "x")
    job.write("paths.txt", "# all of them\n" + "".join(f"data/{number}\n" for number in range(6)))
    assert "(6 files, 6 B)" in job("dataset", "create", "--name", "x", "--paths-from", "paths.txt").stdout


def test_an_address_that_can_not_be_had_is_not_registered(job: Tfjob, web: WebServer) -> None:
    failed = job("dataset", "create", "--name", "x", "--path", web.url("nothing"), exit_code=4)
    assert "there is no file" in failed.stderr
    assert job("dataset", "list", "-o", "json").stdout.strip() == "[]"


def test_two_files_of_one_name_are_refused(job: Tfjob, web: WebServer) -> None:
    a, b = web.put("1/a.txt", b"a"), web.put("2/a.txt", b"b")
    failed = job("dataset", "create", "--name", "x", "--path", a, "--path", b, exit_code=4)
    assert "two files of the dataset have the name a.txt" in failed.stderr


def test_a_dataset_is_downloaded(job: Tfjob, web: WebServer) -> None:
    job.write("data/deep/l.txt", "local")
    job("dataset", "create", "--name", "words", "--path", web.put("a.txt", b"content"), "--path", "data")
    assert job("dataset", "download", "words", "--to", "here").stdout == "2 files (12 B) in here\n"
    assert (job.directory / "here" / "a.txt").read_text() == "content"
    assert (job.directory / "here" / "deep" / "l.txt").read_text() == "local"
    assert job("dataset", "download", "words", "--to", "here").stdout == "2 files (12 B) in here\n"
    (job.directory / "here" / "a.txt").write_text("of mine")
    refused = job("dataset", "download", "words", "--to", "here", exit_code=2)
    assert "1 file with other contents already in here, such as a.txt; nothing was copied" in refused.stderr
    job("dataset", "download", "words", "--to", "here", "--overwrite")
    assert (job.directory / "here" / "a.txt").read_text() == "content"


def test_a_download_goes_to_a_directory(job: Tfjob) -> None:
    file = job.write("data/a", "x")
    job("dataset", "create", "--name", "words", "--path", "data")
    refused = job("dataset", "download", "words", "--to", str(file), exit_code=2)
    assert refused.stderr.startswith("tfjob: data/a is there, and is no directory\n")


def test_a_download_that_fails_leaves_nothing(job: Tfjob, web: WebServer) -> None:
    url = web.put("a.txt", b"content")
    job("dataset", "create", "--name", "words", "--path", url)
    web.put("a.txt", b"content", Status(404))
    assert "there is no file" in job("dataset", "download", "words", exit_code=4).stderr
    assert not (job.directory / "words").exists()


@pytest.mark.parametrize("option", [("--dry-run",), ("--keep-gib", "1")])
def test_what_belongs_to_pruning_is_refused_without_it(job: Tfjob, option: tuple[str, ...]) -> None:
    refused = job("dataset", "cache", *option, exit_code=2).stderr
    assert refused.startswith(f"tfjob: {option[0]} says how to free the cache, and --prune is missing\n")
    job("dataset", "cache", "--prune", *option)


def test_a_dataset_in_use_is_not_deleted(job: Tfjob) -> None:
    job.write("data/a.txt", "a")
    job("dataset", "create", "--name", "words", "--path", "data")
    job.write("job.yml", "command: until test -e go; do sleep 0.05; done\ndataset: {d: words}\n")
    run = job.submit("job.yml")
    refused = job("dataset", "delete", "words", exit_code=2).stderr
    assert f"words@1 is used by {run}, not over yet" in refused
    work = job.run_directory(run) / "work" / "main"
    eventually(work.is_dir, "it runs")
    (work / "go").touch()
    job("wait", run)
    assert job("dataset", "delete", "words").stdout == "Deleted words@1\n"
    missing = job("submit", "job.yml", exit_code=3).stderr
    assert "there is no dataset 'words' in this workspace" in missing
    job("cancel", job("rerun", run, "--detach").stdout.strip())


def test_all_versions_are_deleted_on_a_word_only(job: Tfjob) -> None:
    file = job.write("a.txt", "a")
    job("dataset", "create", "--name", "words", "--path", "a.txt")
    file.write_text("longer")
    job("dataset", "create", "--name", "words", "--path", "a.txt", "--new-version")
    assert "words has 2 versions" in job("dataset", "delete", "words", exit_code=2).stderr
    assert job("dataset", "delete", "words", "--all-versions").stdout == "Deleted words@1\nDeleted words@2\n"


def test_the_schema_is_printed(job: Tfjob) -> None:
    assert json.loads(job("schema", "dataset").stdout)["title"] == "tfjob dataset file"


def test_names_that_are_not_there(job: Tfjob) -> None:
    job("init")
    assert "there is no dataset 'x'" in job("dataset", "show", "x", exit_code=3).stderr
    assert "No datasets yet" in job("dataset", "list").stderr
    assert "0 files, 0 B" in job("dataset", "cache").stdout
    assert "Freed 0 B" in job("dataset", "cache", "--prune").stdout
