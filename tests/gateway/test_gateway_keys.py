"""The file of the inbound keys."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from onellm_async import ConfigurationError
from onellm_async.gateway.key_file import KeyFile, load_keys, lock_keys, read_text, replace_text
from onellm_async.gateway.keys import InboundKey, add_key, choose_lane, hash_key, parse_keys, remove_key, render_key

ALICE = InboundKey(name="alice", sha256=hash_key("a"), lane="interactive", max_cost=5.0)
BOB = InboundKey(name="bob-2", sha256=hash_key("b"), admin=True)


def test_keys_are_read_as_they_are_written():
    text = render_key(ALICE) + "\n# of the night shift\n" + render_key(BOB)
    assert dict(parse_keys(text)) == {hash_key("a"): ALICE, hash_key("b"): BOB}


def test_the_key_itself_is_nowhere():
    assert "sha256=" not in repr(ALICE)
    assert hash_key("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nonsense", "not TOML"),
        ("alice = 5", "outside of a table"),
        ("[alice]", "no sha256"),
        ("[alice]\nsha256 = 'abc'", "64 hexadecimal digits"),
        (f"[alice]\nsha256 = '{'A' * 64}'", "lower case"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nmax_cost = 5", "'max_cost'; the fields are"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nmax-cost = 0", "above 0"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nmax-cost = inf", "finite"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nmax-cost = true", "finite"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nlane = 'fast'", "interactive, default, batch"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nlane = ['batch']", "interactive, default, batch"),
        (f"[alice]\nsha256 = '{'0' * 64}'\nadmin = 1", "true or false"),
        (f"['a b']\nsha256 = '{'0' * 64}'", "letters, digits"),
        (f"[a]\nsha256 = '{'0' * 64}'\n[b]\nsha256 = '{'0' * 64}'", "same key"),
    ],
)
def test_an_unusable_file_is_refused_with_the_reason(text, match):
    with pytest.raises(ConfigurationError, match=match):
        parse_keys(text)


def test_a_key_is_added_and_removed_without_touching_the_rest():
    text = add_key("# mine\n" + render_key(ALICE), BOB)
    assert text.startswith("# mine\n")
    assert set(parse_keys(text).values()) == {ALICE, BOB}
    assert remove_key(text, "bob-2").strip() == ("# mine\n" + render_key(ALICE)).strip()
    assert dict(parse_keys(remove_key(text, "alice"))) == {BOB.sha256: BOB}
    with pytest.raises(ConfigurationError, match="a key called alice"):
        add_key(text, ALICE)
    with pytest.raises(ConfigurationError, match=r"no key called carol.*alice, bob-2"):
        remove_key(text, "carol")


def test_a_key_that_is_written_in_an_unusual_way_is_left_to_its_owner():
    text = f"alice.sha256 = '{'0' * 64}'\n"
    assert len(parse_keys(text)) == 1
    with pytest.raises(ConfigurationError, match="by hand"):
        remove_key(text, "alice")


def test_a_request_can_only_lower_the_lane_of_its_key():
    assert choose_lane("batch", "interactive", any_lane=False) is None
    assert choose_lane("interactive", "default", any_lane=False) == "default"
    assert choose_lane("batch", "interactive", any_lane=True) == "interactive"
    assert choose_lane("batch", "", any_lane=True) is None


def test_the_file_is_for_its_owner_alone_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "keys.toml"
    replace_text(path, render_key(ALICE))
    assert path.stat().st_mode & 0o777 == 0o600
    replace_text(path, add_key(read_text(path), BOB))
    assert len(load_keys(path)) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["keys.toml"]
    with pytest.raises(ConfigurationError):
        replace_text(path, "nonsense")
    assert len(load_keys(path)) == 2


def test_keys_that_are_added_at_the_same_time_are_all_there(tmp_path):
    path = tmp_path / "keys.toml"

    def add(number):
        with lock_keys(path):
            key = InboundKey(name=f"k{number}", sha256=hash_key(f"{number}"))
            replace_text(path, add_key(read_text(path, missing=""), key))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(24)))
    assert len(load_keys(path)) == 24


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_that_others_can_write_is_refused(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(render_key(ALICE))
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_keys(path)


def test_a_file_that_is_none_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError, match="gateway keys add"):
        load_keys(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match=r"cannot be read|not a regular file"):
        load_keys(tmp_path)
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_keys(tmp_path / "latin")


def test_a_running_gateway_follows_the_file_and_keeps_its_keys_while_it_is_broken(tmp_path, caplog):
    path, now = tmp_path / "keys.toml", [0.0]
    replace_text(path, render_key(ALICE))
    file = KeyFile(path, lambda: now[0])
    replace_text(path, add_key(read_text(path), BOB))
    assert len(file.keys) == 1  # it looks once a second
    now[0] = 1.0
    assert len(file.keys) == 2
    path.write_text("nonsense")
    now[0] = 2.0
    assert len(file.keys) == 2
    assert "stay as they were" in caplog.text
    path.unlink()
    now[0] = 3.0
    assert len(file.keys) == 2
    replace_text(path, render_key(BOB))
    now[0] = 4.0
    assert list(file.keys.values()) == [BOB]
