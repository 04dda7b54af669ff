"""Copies of remote shards: whole, shared, bounded, fetched ahead, and asked for again."""

import asyncio
import contextlib
import multiprocessing
import os
import threading
import time
from collections import Counter

import fsspec
import pytest
from aiohttp import web

from curate.contract import storage
from pretrain.stream import cache, files, remote
from pretrain.stream.batch import LocalBatches, Stream, loader
from pretrain.stream.remote import Copies, Unreachable
from pretrain.stream.tars import TarSet
from pretrain.stream.view.caption_mix import CaptionMix
from tests.tiny import scenes
from tests.tiny.local_server import serve


@pytest.fixture
def memory():
    """A store by protocol memory://, empty again at the end."""
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)


class Files:
    """What a server has, by path; it keeps count, and may do something else on the way."""

    def __init__(self, files, delay_s=0.0, instead=lambda request: None, together=0):
        self.files, self.delay_s, self.instead = files, delay_s, instead
        self.together = together  # no GET is answered before so many have met
        self.gets = Counter()
        self.now = self.most = 0  # GETs at once

    async def __call__(self, request):
        if request.method == "GET":
            self.gets[request.path] += 1
            self.now += 1
            self.most = max(self.most, self.now)
            until_s = time.monotonic() + 60
            while self.most < self.together and time.monotonic() < until_s:
                await asyncio.sleep(0.005)
            await asyncio.sleep(self.delay_s)
            self.now -= 1
        if request.path not in self.files:
            return web.Response(status=404)
        data = self.files[request.path]
        return self.instead(request) or web.Response(body=data, headers={"ETag": f'"{len(data)}"'})


def put(store, name, data):
    store.pipe(f"/shards/{name}", data)
    return f"memory://shards/{name}"


def read(copies, path):
    with open(copies.open(path), "rb") as file:
        return file.read()


def held(copies):
    """Sizes of the copies that are whole."""
    names = os.listdir(os.path.join(copies.root, "copies"))
    whole = [name for name in names if storage.TEMPORARY not in name]
    return [os.path.getsize(os.path.join(copies.root, "copies", name)) for name in whole]


def until(true):
    deadline = time.monotonic() + 90
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


def test_paths_on_disk_are_read_in_place(tmp_path):
    (tmp_path / "a").write_bytes(b"here")
    copies = Copies(str(tmp_path / "cache"), 10)
    assert read(copies, str(tmp_path / "a")) == read(copies, f"file://{tmp_path}/a") == b"here"
    assert not (tmp_path / "cache").exists()


def test_a_copy_is_fetched_once_and_again_when_the_file_changed(tmp_path, memory):
    url = put(memory, "a", b"one")
    copies = Copies(str(tmp_path), 1000)
    assert read(copies, url) == b"one"
    memory.store["/shards/a"].seek(0)
    memory.store["/shards/a"].write(b"two")  # behind everybody's back: same size and time
    assert read(copies, url) == b"one"
    put(memory, "a", b"three")
    assert read(Copies(str(tmp_path), 1000), url) == b"three"


def test_the_room_is_never_exceeded_and_the_oldest_goes_first(tmp_path, memory):
    urls = [put(memory, str(n), bytes([n]) * 100) for n in range(5)]
    copies = Copies(str(tmp_path), 250)
    for url in (urls[0], urls[1], urls[0], urls[2]):
        assert len(read(copies, url)) == 100
        assert sum(held(copies)) <= 250
        time.sleep(0.01)
    names = {entry.name for entry in os.scandir(tmp_path / "copies")}
    assert names == {copies._name(urls[0])[0], copies._name(urls[2])[0]}
    big = put(memory, "big", bytes(300))
    with pytest.raises(ValueError, match=r"big: 300 bytes, more than .* \(250\). hint: raise"):
        copies.open(big)


def test_who_reads_a_copy_reads_on_when_it_goes(tmp_path, memory):
    urls = [put(memory, str(n), bytes([n]) * 100) for n in range(2)]
    copies = Copies(str(tmp_path), 150)
    first = copies.open(urls[0])
    copies.open(urls[1])
    assert held(copies) == [100]
    assert os.pread(first, 3, 50) == bytes(3)
    assert read(copies, urls[0]) == bytes(100)


def test_ahead_of_need_in_order_and_within_the_room(tmp_path, memory):
    urls = [put(memory, str(n), bytes([n]) * 100) for n in range(6)]
    copies = Copies(str(tmp_path), 350)
    copies.open(urls[5])
    copies.ahead(urls[:5])
    until(lambda: len(held(copies)) == 3 and sum(held(copies)) == 300)
    there = {entry.name for entry in os.scandir(tmp_path / "copies")}
    # What nobody wants any more made room, what is wanted soonest did not; two are fetched at once.
    assert there >= {copies._name(url)[0] for url in urls[:2]}
    assert copies._name(urls[5])[0] not in there
    before = memory.store["/shards/0"]
    del memory.store["/shards/0"]
    assert read(copies, urls[0]) == bytes(100)
    memory.store["/shards/0"] = before


def test_a_server_that_fails_once_is_asked_again(tmp_path):
    body = bytes(range(256)) * 8
    faults = iter([web.Response(status=503), web.Response(body=body[:-100])])

    def instead(request):
        return next(faults, None) if request.method == "GET" else None

    files = Files({"/a.tar": body}, instead=instead)
    with serve(files) as base:
        assert read(Copies(str(tmp_path), 10_000), f"{base}/a.tar") == body
    assert files.gets["/a.tar"] == 3
    assert [name for name in os.listdir(tmp_path / "copies") if "tmp" in name] == []


def test_a_file_that_is_not_there_says_so_with_a_hint(tmp_path, memory):
    with pytest.raises(
        Unreachable, match=r"memory://shards/none: asked 1 times: FileNotFound.*hint"
    ):
        Copies(str(tmp_path), 10).open("memory://shards/none")


def _hold(root, begun):
    with cache.locked(root, "copy", "x"):
        begun.set()
        time.sleep(200)


def test_a_lock_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), begun))
    process.start()
    assert begun.wait(60)
    process.kill()
    process.join(60)
    with cache.locked(str(tmp_path), "copy", "x"):
        pass


def test_several_that_want_one_copy_fetch_it_once(tmp_path):
    files = Files({"/a.tar": b"x" * 5000}, delay_s=0.05)
    found = []
    with serve(files) as base:
        copies = [Copies(str(tmp_path), 10_000) for _ in range(4)]
        threads = [
            threading.Thread(target=lambda own=own: found.append(read(own, f"{base}/a.tar")))
            for own in copies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [b"x" * 5000] * 4
    assert files.gets["/a.tar"] == 1


def _reads_ahead(root, urls):
    Copies(root, 100_000).ahead(urls)
    time.sleep(200)


def test_what_is_fetched_ahead_is_shared_out_among_threads_and_processes(tmp_path):
    # Six at once, two of each process; a seventh would come while these are held a while longer.
    server = Files({f"/{n}.tar": bytes(100) for n in range(24)}, delay_s=0.1, together=6)
    context = multiprocessing.get_context("fork")
    with serve(server) as base:
        arguments = str(tmp_path), [f"{base}{path}" for path in server.files]
        processes = [context.Process(target=_reads_ahead, args=arguments) for _ in range(3)]
        for process in processes:
            process.start()
        (tmp_path / "copies").mkdir(exist_ok=True)
        try:
            until(lambda: len(server.gets) == 24 and not server.now)
            until(lambda: len(held(Copies(str(tmp_path), 1))) == 24)
        finally:
            for process in processes:
                process.kill()
    assert server.most == 6
    assert set(server.gets.values()) == {1}


def _fetches(root, url):
    os.close(Copies(root, 250).open(url))


@pytest.mark.parametrize("told", [True, False])
def test_the_room_is_kept_by_several_that_fetch_at_once(tmp_path, told):
    def instead(request):
        body = server.files[request.path]
        if told:
            return None
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()

        async def send(request):
            await web.StreamResponse.prepare(answer, request)
            if request.method == "GET":
                await answer.write(body)

        answer.prepare = send
        return answer

    server = Files({f"/{n}.tar": bytes(100) for n in range(5)}, 0.05, instead)
    context = multiprocessing.get_context("fork")
    sizes = [0]

    def look():
        with contextlib.suppress(FileNotFoundError):
            entries = os.scandir(tmp_path / "copies")
            sizes.append(sum(e.stat().st_size for e in entries if told or "tmp" not in e.name))

    with serve(server) as base:
        urls = [f"{base}{path}" for path in server.files]
        processes = [context.Process(target=_fetches, args=(str(tmp_path), url)) for url in urls]
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            look()
        look()  # they may all be over before the first look
        assert [process.exitcode for process in processes] == [0] * 5
    assert 100 <= max(sizes) <= 250
    assert sum(path.stat().st_size for path in (tmp_path / "copies").iterdir()) <= 250


def test_a_copy_that_lost_bytes_is_fetched_again(tmp_path, memory):
    url = put(memory, "a", b"whole")
    copies = Copies(str(tmp_path), 100)
    assert read(copies, url) == b"whole"
    os.truncate(tmp_path / "copies" / copies._name(url)[0], 2)
    assert read(Copies(str(tmp_path), 100), url) == b"whole"


def test_a_file_that_changed_while_it_was_fetched_is_asked_for_by_its_new_mark(tmp_path):
    bodies = [bytes(100), bytes(80)]
    server = Files({"/a.tar": bodies[0]})

    def instead(request):
        if request.method == "GET" and server.gets["/a.tar"] == 1:
            server.files["/a.tar"] = bodies[1]
            return web.Response(body=bodies[1])

    server.instead = instead
    with serve(server) as base:
        assert read(Copies(str(tmp_path), 1000), f"{base}/a.tar") == bodies[1]
    assert server.gets["/a.tar"] == 2


def test_a_set_behind_a_server_trains_as_on_disk_with_workers(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 24, per_shard=2)
    files = Files({f"/set/{file.name}": file.read_bytes() for file in folder.iterdir()})

    def keys(path):
        found = TarSet(path, cache=str(tmp_path / "cache"))
        stream = Stream([found], [1.0], [CaptionMix()], scenes_tokens, 0)
        return [batch.keys for batch in loader(stream, LocalBatches(0, 48, 8), 2, pin=False)]

    with serve(files) as base:
        assert keys(f"{base}/set") == keys(str(folder))
    fetched = {path: count for path, count in files.gets.items() if path.endswith(".tar")}
    assert set(fetched.values()) == {1}  # each once, whichever of the workers needed it
    assert len(fetched) == 12


def test_copies_of_windows_gone_by_take_up_no_room(tmp_path, memory):
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=2)
    for file in folder.iterdir():
        memory.pipe(f"/set/{file.name}", file.read_bytes())
    found = TarSet("memory://set", cache=str(tmp_path / "cache"), cache_gb=1e-5 * 2.5)
    sizes = [file.stat().st_size for file in folder.glob("*.tar")]
    assert sum(sizes) > found._copies.limit_bytes > max(sizes)
    for number in range(12):
        found.ahead([number])
        assert found.read(number).key == scenes.uid(number)
        assert sum(held(found._copies)) <= found._copies.limit_bytes
        assert files.SHARED.of(found._owner) == [number // 2]


def test_a_server_that_refuses_says_so_before_any_work(tmp_path):
    async def refuses(request):
        return web.Response(status=403)

    with serve(refuses) as base, pytest.raises(ValueError, match=r"/set: .*hint: "):
        TarSet(f"{base}/set", cache=str(tmp_path))


def scenes_tokens(texts):
    import torch

    return torch.zeros(len(texts), 4, dtype=torch.int64)
