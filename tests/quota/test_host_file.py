"""The file of a board: whatever happens to it, there is one board and no participant hangs."""

import errno
import os
import subprocess
import sys
import time
from random import Random

import pytest

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand
from onellm_async.quota import host_file, host_quota, versions
from onellm_async.quota.host_file import GUESTS_AT, HALF, HEADER, BoardFileError, HostFile, LockBusyError
from onellm_async.quota.host_quota import HostMember, HostQuota
from onellm_async.quota.versions import NewerBoardError
from onellm_async.wire import dump_json, parse_json

LIMITS = Limits(requests_per_minute=600, burst=40)
WANTED = Demand(waiting=(0, 48, 0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "name.board"


@pytest.fixture
def members(path):
    made = []

    def make(limits=LIMITS, **how):
        made.append(HostMember(path, Declaration(limits, explicit=True), Random(len(made)), **how))
        return made[-1]

    yield make
    for member in made:
        member.abandon()


def board_in(path):
    return parse_json(host_file.read_unlocked(path).payload)


def test_two_clients_of_one_process_exclude_each_other(path, members):
    first, second = HostFile(path), HostFile(path)
    first.lock()
    with pytest.raises(LockBusyError):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()
    for file in (first, second):
        file.close()


def test_a_fork_gets_a_lock_and_a_name_of_its_own(path, members):
    member = members()
    member.transact(Demand())
    child = os.fork()
    if child == 0:
        try:
            for _ in range(200):
                transact_in_time(member)
        finally:
            os._exit(0)
    for _ in range(200):
        transact_in_time(member)
    os.waitpid(child, 0)
    assert len(board_in(path)["rows"]) == 2
    assert host_file.read_unlocked(path).sequence == 401


def transact_in_time(member, demand=Demand()):  # noqa: B008  # a value
    for _ in range(10_000):
        try:
            return member.transact(demand)
        except LockBusyError:
            time.sleep(0.0005)
    raise AssertionError("the lock was never free")


def test_a_lock_is_free_when_its_owner_is_killed(path, members):
    script = f"""
import sys, time
from pathlib import Path
from onellm_async.quota.host_file import HostFile
file = HostFile(Path({str(path)!r}))
file.lock()
print("locked", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(LockBusyError):
            members().transact(WANTED)
        owner.kill()
    assert members().transact(WANTED).participants == 1


def test_a_torn_image_leaves_the_one_before(path, members):
    member = members()
    for _ in range(5):
        member.transact(WANTED)
    granted, newest = board_in(path)["granted"], host_file.read_unlocked(path).sequence
    with path.open("r+b") as file:
        file.seek((newest & 1) * HALF + HEADER.size + 20)
        file.write(b"torn")
    assert host_file.read_unlocked(path).sequence == newest - 1
    grant = members().transact(WANTED)
    assert grant.permits <= 2
    assert board_in(path)["granted"] >= granted - 2


@pytest.mark.parametrize("newest", [False, True], ids=["the older half", "the newest half"])
@pytest.mark.parametrize("offset", [0, 20, HEADER.size + 20], ids=["magic", "head", "payload"])
def test_a_participant_goes_on_whatever_half_is_torn(path, members, newest, offset):
    member = members()
    for _ in range(5):
        member.transact(WANTED)
    granted, sequence = board_in(path)["granted"], host_file.read_unlocked(path).sequence
    with path.open("r+b") as file:
        file.seek(((sequence + 1 - newest) & 1) * HALF + offset)
        file.write(b"\xfftorn\xff\xff\xff")
    member.transact(WANTED)
    other = members().transact(WANTED)
    assert other.participants == 2
    assert granted <= board_in(path)["granted"] <= granted + 2, "no second burst"


def test_what_another_participant_wrote_is_read_before_the_next_visit(path, members):
    first, second = members(), members()
    for _ in range(3):
        first.transact(Demand(waiting=(0, 1, 0)))
    for count in (1, 2, 3, 4):  # as many as there are halves, and more
        before = board_in(path)["granted"]
        taken = sum(second.transact(Demand(waiting=(0, 1, 0))).permits for _ in range(count))
        assert taken == count
        assert first.transact(Demand(waiting=(0, 1, 0))).permits == 1
        assert board_in(path)["granted"] == before + count + 1


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 200_000, b"garbage" * 40_000, b"OLLMQUOT", b"OLLMQUOT" + b"\xff" * 90]
)
def test_a_file_without_a_complete_image_begins_empty_and_is_told(path, members, content, caplog):
    lost = bool(content)
    path.write_bytes(content)
    grant = members().transact(WANTED)
    assert (grant.permits == 0) == lost
    assert bool(caplog.records) == lost
    assert members().transact(WANTED).participants == 2


def test_a_file_that_is_truncated_under_way_is_continued_from_memory(path, members):
    member = members()
    taken = member.transact(WANTED).permits
    assert taken > 30
    os.truncate(path, 0)
    assert member.transact(WANTED).permits == 0
    assert board_in(path)["granted"] == taken


def test_a_removed_file_is_replaced_once_for_all(path, members):
    first, second = members(), members()
    taken = first.transact(WANTED).permits + second.transact(WANTED).permits
    path.unlink()
    again = second.transact(WANTED).permits + first.transact(WANTED).permits
    assert taken > 30
    assert again <= 1
    assert len(board_in(path)["rows"]) == 2


def test_a_removed_directory_is_made_again(tmp_path):
    member = HostMember(tmp_path / "sub" / "x.board", Declaration(LIMITS, explicit=True), Random(0))
    assert member.transact(WANTED).permits
    member.abandon()
    assert oct((tmp_path / "sub").stat().st_mode)[-3:] == "700"


def test_a_full_disk_stores_nothing_and_grants_nothing(path, members, monkeypatch):
    member = members()
    member.transact(Demand())
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        member.transact(WANTED)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert member.transact(WANTED).permits > 30


def test_the_space_of_both_images_is_reserved_at_the_beginning(path, members):
    members().transact(Demand())
    assert path.stat().st_size == GUESTS_AT
    assert path.stat().st_blocks * 512 >= GUESTS_AT


def test_a_disk_that_is_full_at_the_beginning_is_told(path):
    script = f"""
import resource, signal, sys
from pathlib import Path
from random import Random
from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand
from onellm_async.quota.host_quota import HostMember
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, -1))
member = HostMember(Path({str(path)!r}), Declaration(Limits(), explicit=False), Random(0))
try:
    member.transact(Demand())
except OSError as error:
    print(error.errno)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert int(run.stdout) in {errno.EFBIG, errno.ENOSPC}


def test_a_symbolic_link_is_not_followed(path, tmp_path, members):
    (tmp_path / "target").touch()
    path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        members().transact(Demand())
    assert not (tmp_path / "target").stat().st_size


def test_a_fifo_or_directory_in_its_place_is_refused(tmp_path, members, path):
    os.mkfifo(path)
    with pytest.raises(BoardFileError, match="not a regular file"):
        members().transact(Demand())


def test_the_file_is_private(path, members):
    members().transact(Demand())
    assert oct(path.stat().st_mode)[-3:] == "600"


# Boots and hosts


def booted(path, members, monkeypatch, *, ago):
    member = members()
    member.transact(WANTED)
    other = members()
    other._boot_id = b"another boot".ljust(16, b"\0")
    wall = time.time() + ago
    monkeypatch.setattr(time, "time", lambda: wall)
    return other


def test_a_restart_of_the_host_keeps_the_level_and_drops_the_participants(path, members, monkeypatch):
    other = booted(path, members, monkeypatch, ago=time.monotonic() + 3600)
    grant = other.transact(WANTED)
    assert grant.permits <= 1
    assert grant.participants == 1


def test_a_file_that_another_host_uses_is_refused(path, members, monkeypatch):
    other = booted(path, members, monkeypatch, ago=0.0)
    with pytest.raises(ConfigurationError, match="another host") as raised:
        other.transact(WANTED)
    assert "redis://" in raised.value.advice


def test_clocks_that_differ_between_containers_are_told(path, members, monkeypatch):
    first, second = members(), members()
    clock = time.monotonic

    def alternate():
        for _ in range(9):
            first.transact(Demand())
            monkeypatch.setattr(host_quota.time, "monotonic", lambda: clock() - 5000)
            try:
                second.transact(Demand())
            finally:
                monkeypatch.setattr(host_quota.time, "monotonic", clock)

    with pytest.raises(BoardFileError, match="different clocks"):
        alternate()


# Versions


def newer(path, monkeypatch, members, **changes):
    """A board as a newer version would leave it."""
    member = members()
    member.transact(WANTED)
    image = {**board_in(path), "version": "99.0.0", **changes}
    file = HostFile(path)
    file.lock()
    file.write(dump_json(image), file.read().sequence + 1, member._boot_id)
    file.unlock()
    file.close()
    return image


def test_fields_of_a_newer_version_are_kept(path, members, monkeypatch):
    newer(path, monkeypatch, members, invented=[1, 2])
    members().transact(WANTED)
    assert board_in(path)["invented"] == [1, 2]


def test_a_board_that_a_newer_version_keeps_is_left_alone_and_its_participants_are_counted(path, members, monkeypatch):
    image = newer(path, monkeypatch, members, control={"kind": "general", "control": {"~": "later:New", "has": {}}})
    with pytest.raises(NewerBoardError, match=r"99\.0\.0") as raised:
        members().transact(WANTED)
    assert raised.value.rows == 1
    assert board_in(path) == image


def test_a_newer_format_is_left_alone(path, members, monkeypatch):
    member = members()
    member.transact(WANTED)
    monkeypatch.setattr(host_file, "FORMAT", 2)
    monkeypatch.setattr(versions, "FORMAT", 2)
    member.transact(WANTED)
    monkeypatch.undo()
    before = path.read_bytes()[:GUESTS_AT]
    with pytest.raises(NewerBoardError):
        members().transact(WANTED)
    assert path.read_bytes()[:GUESTS_AT] == before


def test_what_an_older_version_sends_beside_the_board_is_charged_by_the_newer_one(path, members, monkeypatch):
    young = members()
    young.transact(WANTED)
    old = members()
    monkeypatch.setattr(host_quota, "read_board", refuse)
    for _ in range(2):
        with pytest.raises(NewerBoardError):
            old.transact(Demand(sent_alone=10, alone_for=1.0))
    monkeypatch.undo()
    level = young.transact(Demand()).level
    assert level < -15
    assert young.transact(Demand()).level == pytest.approx(level, abs=1)


def refuse(*_):
    raise NewerBoardError("newer", 3)


def test_a_board_of_an_older_version_is_converted_and_never_begun_anew(path, members, monkeypatch):
    control = {"kind": "general", "control": {"~": "adaptive:Gone", "has": {}}}
    image = newer(path, monkeypatch, members, control=control, version="0.0.1", retry_at=time.monotonic() + 30)
    grant = members().transact(WANTED)
    assert grant.permits == 0
    assert grant.rate == pytest.approx(10)
    assert grant.participants == len(image["rows"]) + 1
    assert grant.retry_in == pytest.approx(30, abs=1)


# The directory


@pytest.fixture
def default_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("ONELLM_QUOTA_DIR", raising=False)
    monkeypatch.setattr(host_quota.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"onellm-async-{os.getuid()}"


def test_the_directory_is_that_of_the_user_in_the_temporary_one(default_directory):
    quota = HostQuota()
    quota.check()
    assert quota.path("x") == default_directory / "x.board"
    assert oct(default_directory.stat().st_mode)[-3:] == "700"


def test_the_variable_names_another_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(tmp_path / "deep" / "er"))
    HostQuota().check()
    assert HostQuota().path("x") == tmp_path / "deep" / "er" / "x.board"


def test_a_directory_that_all_can_write_gets_one_for_each_user(tmp_path):
    tmp_path.chmod(0o1777)
    assert HostQuota(tmp_path).path("x") == tmp_path / f"onellm-async-{os.getuid()}" / "x.board"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_use_is_refused(default_directory, mode):
    default_directory.mkdir()
    default_directory.chmod(mode)
    with pytest.raises(ConfigurationError, match="other users may use it") as raised:
        HostQuota().check()
    assert "chmod 700" in str(raised.value)


def test_a_directory_of_another_user_is_refused(default_directory, monkeypatch):
    user = os.getuid()
    default_directory.with_name(f"onellm-async-{user + 1}").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        HostQuota().check()


def test_a_link_in_place_of_the_directory_is_refused(default_directory, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    default_directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="not a directory"):
        HostQuota().check()


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot use the directory") as raised:
        HostQuota(tmp_path / "file" / "x").check()
    assert "ONELLM_QUOTA_DIR" in str(raised.value)


def test_windows_is_pointed_to_redis(monkeypatch):
    monkeypatch.setattr(host_quota, "HAS_FILE_LOCKS", False)
    with pytest.raises(ConfigurationError, match="Windows") as raised:
        HostQuota().check()
    assert "redis://" in str(raised.value)


def test_nothing_of_the_key_is_in_the_file(path, members):
    members().transact(WANTED)
    assert b"key" not in path.read_bytes()
