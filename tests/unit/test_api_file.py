"""Rules of declarations: names, identity, contents, unlinking (reference, sections 3.4, 5, 11.2, 11.7)."""

from __future__ import annotations

import gc
import http.server
import io
import os
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fake_runner import FakeRunner

import taskvine_core as vine
from taskvine_core.manager import api, naming
from taskvine_core.manager.events import Declare, Prune, Submit, Undeclare
from taskvine_core.model.files import INLINE_MAX_BYTES
from taskvine_core.model.names import check_cache_name


@pytest.fixture
def manager(monkeypatch, tmp_path):
    monkeypatch.setattr(api, "ManagerRunner", FakeRunner)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with vine.Manager(port=0, run_info_path=tmp_path / "info") as made:
        yield made


@pytest.fixture
def runner(manager):
    return FakeRunner.made[-1]


def how(file):
    """Name without its value."""
    check_cache_name(file.cached_name)
    return file.cached_name.rpartition("-")[0]


def declared(runner, file):
    return [e.decl for e in runner.events if isinstance(e, Declare) and e.decl.name == file.cached_name]


def use(manager, *files):
    task = vine.Task("x")
    for number, file in enumerate(files):
        task.add_input(file, f"in{number}")
    manager.submit(task)
    return task


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(("cache", "expected"), [
    (False, "file-meta"), (None, "file-meta"), ("task", "file-meta"), (True, "file-meta"), ("workflow", "file-meta"),
    ("worker", "file-md5"), ("forever", "file-md5")])
def test_the_cache_level_decides_the_name_of_a_file(manager, tmp_path, cache, expected):
    (tmp_path / "f").write_text("x")
    assert how(manager.declare_file(tmp_path / "f", cache=cache)) == expected


@pytest.mark.parametrize("cache", ["always", 1, 0, 2, "", b"task"])
@pytest.mark.parametrize("call", ["declare_file", "declare_url", "declare_buffer"])
def test_any_other_level_is_a_value_error(manager, cache, call):
    with pytest.raises(ValueError, match="cache="):
        getattr(manager, call)("file:///etc/passwd", cache=cache)


def test_content_names_depend_on_content_only(manager, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("same")
    (tmp_path / "c").write_text("else")
    a, b, c = (manager.declare_file(tmp_path / n, cache="worker") for n in "abc")
    assert a is b and c is not a
    assert a.cached_name == "file-md5-51037a4a37730f52c8732586d3aaa316"  # printf same | md5sum


def test_a_directory_is_named_by_names_modes_and_contents(tmp_path):
    def digest(name, text, mode=0o644):
        directory = tmp_path / name
        (directory / "sub").mkdir(parents=True)
        (directory / "sub" / "f").write_text(text)
        (directory / "sub" / "f").chmod(mode)
        (directory / "link").symlink_to("sub/f")
        return naming.content_digests(str(directory), True)[0]

    assert digest("a", "x") == digest("b", "x")
    assert len({digest("c", "x"), digest("d", "y"), digest("e", "x", 0o755)}) == 3


def test_identity_of_a_file_is_path_size_and_time(manager, tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("x")
    first = manager.declare_file(path)
    monkeypatch.chdir(tmp_path)
    assert manager.declare_file("f") is first
    os.utime(path, ns=(1, 1))
    assert manager.declare_file(path).cached_name != first.cached_name


def test_a_missing_file_is_one_file_until_it_exists(manager, tmp_path):
    path = tmp_path / "out"
    first = manager.declare_file(path)
    assert how(first) == "file-rnd" and manager.declare_file(path) is first
    path.write_text("x")
    assert how(manager.declare_file(path)) == "file-meta"


@pytest.mark.parametrize(("path", "error"), [(5, TypeError), (None, TypeError), ("", ValueError), ("a\0b", ValueError),
                                             (b"bytes", ValueError)])
def test_what_is_no_path_is_refused(manager, path, error):
    with pytest.raises(error, match="path"):
        manager.declare_file(path)


def test_the_home_directory_is_expanded(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert manager.declare_file("~/f").source() == str(tmp_path / "f")


@pytest.mark.parametrize(("data", "cache", "expected"), [
    ("x", False, "buffer-rnd"), (b"x", True, "buffer-rnd"), (bytearray(b"x"), "worker", "buffer-md5"),
    (memoryview(b"x"), "forever", "buffer-md5"), (None, False, "buffer-rnd")])
def test_buffers_take_text_and_bytes(manager, data, cache, expected):
    file = manager.declare_buffer(data, cache=cache)
    assert how(file) == expected and file.type() == vine.VINE_BUFFER
    if data is not None:
        assert file.contents() == b"x" and len(file) == 1


def test_equal_buffers_kept_by_content_are_one_file(manager):
    assert manager.declare_buffer("x", cache="worker") is manager.declare_buffer(b"x", cache="forever")
    assert manager.declare_buffer("x") is not manager.declare_buffer("x")


@pytest.mark.parametrize("data", [5, ["x"], {"a": 1}])
def test_what_is_no_buffer_is_a_type_error(manager, data):
    with pytest.raises(TypeError, match="buffer"):
        manager.declare_buffer(data)


@pytest.mark.parametrize("size", [0, INLINE_MAX_BYTES + 1])
def test_empty_and_large_buffers_lie_in_a_staging_file(manager, runner, size):
    file = manager.declare_buffer(b"z" * size)
    use(manager, file)
    [decl] = declared(runner, file)
    assert decl.data == b"" and os.path.getsize(decl.source) == size == decl.size
    assert file.contents() == b"z" * size and manager.fetch_file(file) == "z" * size


def test_urls_need_text_with_a_scheme(manager):
    with pytest.raises(TypeError, match="url"):
        manager.declare_url(Path("x"))
    with pytest.raises(ValueError, match="scheme"):
        manager.declare_url("example.org/x")
    assert how(manager.declare_url("http://localhost:1/x")) == "url-rnd"


@pytest.mark.parametrize(("headers", "expected"), [
    ({"content-md5": "CY9rzUYh03PK3k6DJie09g=="}, "url-md5-content-098f6bcd4621d373cade4e832627b4f6"),
    ({"content-md5": "nonsense/..", "etag": '"a"'}, "url-md5-et-"),
    ({"etag": '"a"', "last-modified": "x"}, "url-md5-et-"),
    ({"last-modified": "x"}, "url-md5-lm-"), ({}, "url-md5-url-")])
def test_a_kept_url_is_named_by_the_best_its_server_says(headers, expected):
    name = naming.url_name("http://h/x", vine.VINE_CACHE_LEVEL_WORKER, headers)
    assert name.startswith(expected) and check_cache_name(name)


def test_url_headers_follow_redirects_and_never_fail():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(302 if self.path == "/old" else 200)
            self.send_header("Location" if self.path == "/old" else "ETag", "/new" if self.path == "/old" else '"v1"')
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        assert naming.url_headers(f"http://127.0.0.1:{server.server_port}/old")["etag"] == '"v1"'
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
    assert naming.url_headers(f"http://127.0.0.1:{server.server_port}/old") == {}


def test_a_kept_file_url_is_named_by_content(manager, tmp_path):
    (tmp_path / "a b").write_text("same")
    file = manager.declare_url((tmp_path / "a b").as_uri(), cache="worker")
    assert file.cached_name == "url-md5-content-51037a4a37730f52c8732586d3aaa316"


def test_temps_are_new_each_time_and_local_without_peer_transfers(manager, runner):
    assert how(manager.declare_temp()) == "temp-rnd"
    assert manager.declare_temp().cached_name != manager.declare_temp().cached_name
    manager.disable_peer_transfers()
    local = manager.declare_temp()
    assert local.type() == vine.VINE_FILE and Path(local.source()).name.startswith("temp-local-")
    assert runner.core.staging.peers_enabled is False
    Path(local.source()).write_text("x")
    manager.undeclare_file(local)
    assert not os.path.exists(local.source())


# ---------------------------------------------------------------------- mini-tasks


def mini(manager, **values):
    task = vine.Task(values.pop("command", "make it"), env=values.pop("env", {}))
    for file, name in values.pop("inputs", {}).items():
        task.add_input(file, name)
    return manager.declare_minitask(task, values.pop("source", "o"), **values)


def test_a_mini_task_is_named_by_its_description_when_kept(manager):
    data = manager.declare_buffer("x", cache="worker")
    kept = [mini(manager, cache="worker", **v) for v in (
        {}, {}, {"command": "else"}, {"source": "p"}, {"env": {"A": "1"}}, {"inputs": {data: "in"}},
        {"inputs": {data: "other"}})]
    assert kept[0] is kept[1] and len({f.cached_name for f in kept}) == 6 and how(kept[0]) == "task-md5"
    assert how(mini(manager)) == "task-rnd"


def test_inputs_of_a_mini_task_are_declared_before_it(manager, runner):
    data = manager.declare_buffer("x")
    file = mini(manager, inputs={data: "in"})
    use(manager, file)
    names = [e.decl.name for e in runner.events if isinstance(e, Declare)]
    assert names == [data.cached_name, file.cached_name]


def test_permission_bits_set_after_the_declaration_count(manager, runner):
    file = mini(manager)
    file.set_mode(0o4055)
    use(manager, file)
    [decl] = declared(runner, file)
    assert decl.mode == 0o655 and decl.mini_source == "o" and decl.mini_task.command == "make it"
    with pytest.raises(TypeError, match="mode"):
        file.set_mode("600")


@pytest.mark.parametrize(("task", "source", "error"), [
    ("make it", "o", TypeError), (vine.PythonTask(len, "x"), "o", TypeError), (vine.Task("x"), "/o", ValueError),
    (vine.Task("x"), "../o", ValueError), (vine.Task("x"), 5, TypeError)])
def test_what_cannot_make_a_file_is_refused(manager, task, source, error):
    with pytest.raises(error, match=r"minitask|source"):
        manager.declare_minitask(task, source)


def test_a_mini_task_with_outputs_is_refused(manager):
    with pytest.raises(ValueError, match="outputs"):
        manager.declare_minitask(vine.Task("x", outputs={manager.declare_temp(): "o"}), "o")


def test_ready_made_mini_tasks_quote_and_mount(manager, tmp_path):
    data, proxy = manager.declare_buffer("x"), manager.declare_buffer("p")
    (tmp_path / "env.tar.gz").write_text("x")
    tasks = {
        "untar": manager.declare_untar(data), "poncho": manager.declare_poncho(str(tmp_path / "env.tar.gz")),
        "starch": manager.declare_starch(data),
        "xrootd": manager.declare_xrootd("root://h//a b", proxy=proxy, env=data),
        "chirp": manager.declare_chirp("h:9094", "/a;b", ticket=proxy)}
    commands = {kind: file._decl.mini_task for kind, file in tasks.items()}
    assert all(file.type() == vine.VINE_MINI_TASK for file in tasks.values())
    assert "tar xf input" in commands["untar"].command and commands["untar"].inputs[0].remote == "input"
    assert "xrdcp 'root://h//a b' output.root" in commands["xrootd"].command
    assert commands["xrootd"].env == (("X509_USER_PROXY", "proxy509.pem"),)
    assert "run_in_env xrdcp" in commands["xrootd"].command
    assert "--tickets=ticket.chirp h:9094 '/a;b'" in commands["chirp"].command
    assert "package.tar.gz" in commands["poncho"].command and "package.sfx" in commands["starch"].command


# ---------------------------------------------------------------------- File


def test_files_are_true_hashable_and_know_their_source(manager, tmp_path):
    file = manager.declare_file(tmp_path / "none")
    assert bool(file) and len(file) == 0 and {file: 1}[file] == 1 and file.type() == vine.VINE_FILE
    (tmp_path / "none").write_text("12345")
    assert len(file) == 5 and file.source() == str(tmp_path / "none") and file.contents() == b"12345"


def test_an_unserializer_gets_an_open_stream(manager, tmp_path):
    (tmp_path / "f").write_text("line\nmore")
    assert manager.declare_file(tmp_path / "f").contents(io.BufferedIOBase.readline) == b"line\n"
    assert manager.declare_buffer("line\nmore").contents(lambda s: s.read(4)) == b"line"


def test_contents_that_are_not_here_are_a_value_error(manager):
    for file in (manager.declare_buffer(), manager.declare_temp(), manager.declare_url("http://localhost/x")):
        with pytest.raises(ValueError, match="contents"):
            file.contents()


def test_output_buffers_are_read_back(manager, runner, tmp_path):
    small, large = manager.declare_buffer(), manager.declare_buffer()
    (tmp_path / "staged").write_bytes(b"large")
    runner.stored = {small.cached_name: b"small", large.cached_name: tmp_path / "staged"}
    assert small.contents() == b"small" and large.contents() == b"large" and (len(small), len(large)) == (5, 5)
    assert manager.fetch_file(large) == "large"


def test_fetched_temps_are_kept_in_memory(manager, runner, tmp_path):
    temp = manager.declare_temp()
    assert manager.fetch_file(temp) is None  # nobody writes it
    other = manager.declare_temp()
    use(manager, temp, other)
    assert manager.fetch_file(temp) is None
    (tmp_path / "got").write_bytes(b"caf\xe9")
    runner.fetched[temp.cached_name] = tmp_path / "got"
    assert manager.fetch_file(temp) == "caf\udce9" and not (tmp_path / "got").exists()
    (tmp_path / "dir").mkdir()
    runner.fetched[other.cached_name] = tmp_path / "dir"
    assert manager.fetch_file(other) is None and not (tmp_path / "dir").exists()
    runner.fetched.clear()
    assert temp.contents() == b"caf\xe9" and manager.fetch_file(temp) == "caf\udce9"


def test_fetching_a_local_file_that_is_not_there_gives_none(manager, tmp_path):
    assert manager.fetch_file(manager.declare_file(tmp_path / "none")) is None


@pytest.mark.parametrize("call", ["fetch_file", "undeclare_file", "remove_file", "prune_file",
                                  "get_file_replica_count"])
def test_only_files_can_be_handled(manager, call):
    with pytest.raises(TypeError, match="file must be a File"):
        getattr(manager, call)("path")


def test_the_core_learns_of_a_file_when_it_is_used_first(manager, runner):
    file = manager.declare_buffer("x")
    assert runner.events == [] and manager.get_file_replica_count(file) == 0
    use(manager, file)
    use(manager, file)
    assert len(declared(runner, file)) == 1


def test_undeclared_files_end_and_pruned_ones_stay(manager, runner, tmp_path):
    (tmp_path / "f").write_text("x")
    file = manager.declare_file(tmp_path / "f")
    use(manager, file)
    manager.prune_file(file)
    assert runner.events[-1] == Prune(file.cached_name)
    manager.undeclare_file(file)
    assert runner.events[-1] == Undeclare(file.cached_name)
    manager.undeclare_file(file)
    assert [type(e) for e in runner.events].count(Undeclare) == 1
    assert manager.declare_file(tmp_path / "f") is not file


def test_an_undeclared_file_used_again_is_known_for_that_task_only(manager, runner):
    file = manager.declare_buffer("x")
    use(manager, file)
    manager.undeclare_file(file)
    use(manager, file)
    manager.wait(0)
    kinds = [type(e) for e in runner.events]
    assert kinds == [Declare, Submit, Undeclare, Declare, Submit, Undeclare]


def test_temps_nobody_can_name_any_more_are_undeclared(manager, runner):
    temp = manager.declare_temp()
    name, task = temp.cached_name, use(manager, temp)
    del temp
    gc.collect()
    manager.wait(0)
    assert Undeclare(name) not in runner.events  # the task still refers to it
    runner.finish(task.id)
    assert manager.wait(0) is task
    del task
    gc.collect()
    manager.wait(0)
    assert Undeclare(name) in runner.events


def test_a_local_file_is_unlinked_when_it_is_undeclared(manager, tmp_path):
    path = tmp_path / "f"
    path.write_text("x")
    manager.remove_file(manager.declare_file(path, unlink_when_done=True))
    assert not path.exists()
    path.mkdir()
    (path / "inside").write_text("x")
    manager.remove_file(manager.declare_file(path, unlink_when_done=True))
    assert not path.exists()


def test_a_local_file_stays_without_the_flag(manager, tmp_path):
    (tmp_path / "f").write_text("x")
    manager.remove_file(manager.declare_file(tmp_path / "f"))
    assert (tmp_path / "f").exists()


def test_a_file_to_be_unlinked_lives_as_long_as_the_task_object(manager, runner, tmp_path):
    class Cleans(vine.Task):
        def submit_finalize(self):
            self.file = self._manager.declare_file(tmp_path / "f", unlink_when_done=True)
            self.add_input(self.file, "in")

        def __del__(self):
            self._manager.remove_file(self.file)

    (tmp_path / "f").write_text("x")
    task = Cleans("sleep 100")
    manager.submit(task)
    manager.cancel_by_task_id(task.id)
    assert manager.wait(1) is task and (tmp_path / "f").exists()
    gc.collect()
    assert (tmp_path / "f").exists()
    del task
    gc.collect()
    assert not (tmp_path / "f").exists()


def test_a_file_other_tasks_refer_to_is_not_unlinked_yet(manager, runner, tmp_path):
    (tmp_path / "f").write_text("x")
    file = manager.declare_file(tmp_path / "f", unlink_when_done=True)
    task = use(manager, file)
    manager.remove_file(file)
    assert (tmp_path / "f").exists()
    runner.finish(task.id)
    assert manager.wait(0) is task
    del task
    gc.collect()
    assert not (tmp_path / "f").exists()


def test_a_temps_producer_keeps_its_large_inputs_at_the_manager(manager, runner):
    data, temp = manager.declare_buffer(b"z" * (INLINE_MAX_BYTES + 1)), manager.declare_temp()
    task = vine.Task("x", inputs={data: "in"}, outputs={temp: "out"})
    manager.submit(task)
    path = data._decl.source
    runner.finish(task.id)
    assert manager.wait(0) is task
    del task, data
    gc.collect()
    manager.wait(0)
    assert os.path.exists(path)
    del temp
    gc.collect()
    manager.wait(0)
    assert not os.path.exists(path)


def test_what_is_still_declared_is_unlinked_at_the_end(manager, tmp_path):
    (tmp_path / "f").write_text("x")
    manager.declare_file(tmp_path / "f", unlink_when_done=True)
    manager.close()
    assert not (tmp_path / "f").exists()


# ---------------------------------------------------------------------- cheap to declare, still each its own


def test_a_forked_child_does_not_draw_the_names_its_parent_will_use():
    naming.random_letters()  # some are drawn ahead now
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, "".join(naming.random_letters() for _ in range(20)).encode())
        os._exit(0)
    mine = {naming.random_letters() for _ in range(20)}
    assert os.waitpid(pid, 0)[1] == 0
    theirs = os.read(read, 4096).decode()
    os.close(read)
    os.close(write)
    assert len(mine) == 20 and len(theirs) == 320
    assert not mine & {theirs[at:at + 16] for at in range(0, 320, 16)}


def test_names_drawn_by_several_threads_are_each_given_once():
    found: list[str] = []

    def draw():
        found.extend([naming.random_letters() for _ in range(3000)])

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == len(set(found)) == 12_000
    assert all(len(name) == 16 for name in found)


def test_each_task_mounts_a_shared_file_as_it_was_told(manager, runner):
    shared = manager.declare_buffer("x")
    for remote, strict in (("a", False), ("a", True), ("b", False), ("a", False)):
        task = vine.Task(":")
        task.add_input(shared, remote, strict_input=strict)
        manager.submit(task)
    mounts = [e.spec.inputs for e in runner.events if isinstance(e, Submit)]
    flags = vine.VINE_FIXED_LOCATION
    assert [(m.remote, m.flags) for (m,) in mounts] == [("a", 0), ("a", flags), ("b", 0), ("a", 0)]


def test_a_refused_sandbox_path_is_refused_every_time(manager):
    shared = manager.declare_buffer("x")
    for _ in range(2):
        with pytest.raises(ValueError, match="leaves the sandbox"):
            vine.Task(":").add_input(shared, "a/../b")
