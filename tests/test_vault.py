"""Weights at rest: what is kept comes back to the bit, and whatever was touched, even once, does not come back."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import secure_ml as sm
from experiments._main import main
from secure_ml import vault, victim
from secure_ml.vault import MAGIC, NAME, NONCE, TAG, VARIABLE, Key, key_from, seal, unseal
from tests.laws import same, tiny_task, tiny_victim

KEY, OTHER = Key(bytes(range(32))), Key(bytes(range(1, 33)))
TASK = "digits_mlp"


def kept(folder: Path, key: Key | None = KEY) -> Path:
    tiny_victim(TASK).save(folder / "v", key)
    return folder / "v"


def load(folder: Path, key: Key | None = KEY) -> sm.Victim:
    return sm.Victim.load(folder, tiny_task(TASK), device="cpu", key=key)


def test_bit_for_bit(tmp_path: Path) -> None:
    folder = kept(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"victim.json", "weights.safetensors.aes"}
    again, first = load(folder), tiny_victim(TASK)
    assert same(list(again.module.state_dict().items()), list(first.module.state_dict().items()))
    assert (again.seed, again.claims, again.seconds) == (first.seed, first.claims, first.seconds)


def test_it_is_the_cipher_of_the_standard() -> None:
    """Test case 16 of McGrew and Viega's specification of GCM, through the header's layout."""
    key = Key(bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2))
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    about = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    expected = (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert vault._cipher(key).encrypt(nonce, plain, about).hex() == expected


def test_nothing_of_the_weights_shows(tmp_path: Path) -> None:
    sealed = (kept(tmp_path) / "weights.safetensors.aes").read_bytes()
    for name, value in tiny_victim(TASK).module.state_dict().items():
        assert name.encode() not in sealed
        assert value.numpy().tobytes()[:16] not in sealed
    assert KEY.secret not in sealed


def test_a_nonce_serves_once() -> None:
    nonces = {seal(b"x", b"", KEY)[len(MAGIC) + NAME :][:NONCE] for _ in range(50)}
    assert len(nonces) == 50


def flips(content: bytes) -> list[int]:
    """Every place of the header and the tag, and some of the rest."""
    return sorted(
        {*range(min(60, len(content))), *range(0, len(content), 97), *range(len(content) - TAG, len(content))}
    )


@pytest.mark.parametrize("name", ["weights.safetensors.aes", "victim.json"])
def test_every_changed_byte_is_found(name: str, tmp_path: Path) -> None:
    path = kept(tmp_path) / name
    content = path.read_bytes()
    for place in flips(content):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(sm.UsageError, match=r"changed|encrypted with the key|no encrypted model"):
            load(path.parent)
    path.write_bytes(content)
    load(path.parent)


@pytest.mark.parametrize("length", [0, 10, len(MAGIC), len(MAGIC) + NAME + NONCE, len(MAGIC) + NAME + NONCE + TAG, -1])
def test_a_file_that_was_cut(length: int, tmp_path: Path) -> None:
    path = kept(tmp_path) / "weights.safetensors.aes"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(sm.UsageError, match=r"cut short|changed"):
        load(path.parent)


def test_files_of_two_models_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    one, two = kept(tmp_path), kept(tmp_path / "b")
    said = json.loads((two / "victim.json").read_text())
    (two / "victim.json").write_text(json.dumps(said | {"seconds": 1.0}))
    (one / "victim.json").write_bytes((two / "victim.json").read_bytes())
    with pytest.raises(sm.UsageError, match="nothing was loaded"):
        load(one)


def test_nothing_is_looked_into_before_it_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the JSON nor the weights of a tampered model reach a parser."""
    folder = kept(tmp_path)
    (folder / "victim.json").write_bytes((folder / "victim.json").read_bytes() + b" ")

    def parsed(*_: object) -> None:
        raise AssertionError("what was tampered with was parsed")

    monkeypatch.setattr(victim.json, "loads", parsed)
    monkeypatch.setattr(victim, "load", parsed)
    with pytest.raises(sm.UsageError, match="nothing was loaded"):
        load(folder)


def test_wrong_and_missing_keys(tmp_path: Path) -> None:
    folder = kept(tmp_path)
    with pytest.raises(sm.UsageError, match=f"encrypted with the key {KEY.name.hex()}.* is {OTHER.name.hex()}"):
        load(folder, OTHER)
    with pytest.raises(sm.UsageError, match="is encrypted: give its key"):
        load(folder, None)
    plain = kept(tmp_path, None)
    assert {path.name for path in plain.iterdir()} == {"victim.json", "weights.safetensors"}, "the other file stayed"
    with pytest.raises(sm.UsageError, match="is not encrypted, and a key was given"):
        load(plain)
    load(plain, None)
    with pytest.raises(sm.UsageError, match="holds no saved model"):
        load(tmp_path / "none")


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    KEY.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_from(path) == KEY
    assert KEY.secret.hex() not in repr(KEY)
    assert Key.draw() != Key.draw()
    with pytest.raises(sm.UsageError, match="cannot write a key"):
        OTHER.write(path)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert key_from() is None
    monkeypatch.setenv(VARIABLE, OTHER.secret.hex())
    assert key_from() == OTHER
    assert key_from(path) == KEY, "the file comes first"
    monkeypatch.setenv(VARIABLE, "secret words")
    with pytest.raises(sm.UsageError, match="SECURE_ML_KEY holds no key") as caught:
        key_from()
    assert "secret words" not in str(caught.value)
    with pytest.raises(sm.UsageError, match="cannot read the key file"):
        key_from(tmp_path / "none")
    path.write_text("ab" * 31)
    with pytest.raises(sm.UsageError, match="holds no key"):
        key_from(path)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read(mode: int, tmp_path: Path) -> None:
    KEY.write(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.warns(UserWarning, match="others can read the key file"):
        assert key_from(tmp_path / "key") == KEY


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    KEY.write(tmp_path / "key")
    monkeypatch.setattr(vault, "find_spec", lambda _: None)
    for action in (lambda: seal(b"", b"", KEY), lambda: key_from(tmp_path / "key")):
        with pytest.raises(sm.UsageError, match=r"pip install cryptography \(the extra 'encryption'\)"):
            action()


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    KEY.write(tmp_path / "key")
    out = str(tmp_path / "model")
    shared = ["digits_cnn(tiny=True)", "--device", "cpu"]
    with_key = ["--key-file", str(tmp_path / "key")]
    assert main(["fit", *shared, "--out", out, *with_key]) == 0
    assert {path.name for path in Path(out).iterdir()} == {"victim.json", "weights.safetensors.aes"}
    craft = ["craft", *shared, "--model", out, "--attack", "fgsm", "--examples", "5", "--out", str(tmp_path / "files")]
    assert main(craft) == 2
    assert "give its key (--key-file, or SECURE_ML_KEY)" in capsys.readouterr().err
    assert main([*craft, *with_key]) == 0
    monkeypatch.setenv(VARIABLE, KEY.secret.hex())
    assert main(craft) == 0
    printed = capsys.readouterr()
    assert not re.search(KEY.secret.hex(), printed.out + printed.err)


def test_a_killed_fit_leaves_no_plain_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import fit

    monkeypatch.delenv(VARIABLE, raising=False)
    KEY.write(tmp_path / "key")
    given: list[object] = []
    monkeypatch.setattr(fit, "fit", lambda *_, checkpoint, **__: given.append(checkpoint) or tiny_victim("digits_cnn"))
    common = ["fit", "digits_cnn(tiny=True)", "--out", str(tmp_path / "m")]
    assert main([*common, "--key-file", str(tmp_path / "key")]) == 0
    assert main(common) == 0
    assert given[0] is None
    assert given[1] is not None


# -- vaults that are broken in one way each, and what must notice ------------------------------------------------------


def ignores_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "_bound", lambda header, about: header)


def keeps_its_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault.os, "urandom", lambda n: bytes(n))


def test_a_vault_that_does_not_bind_its_metadata_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ignores_what_is_said(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_every_changed_byte_is_found("victim.json", tmp_path)


def test_a_vault_that_repeats_its_nonce_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_its_nonce(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_nonce_serves_once()


def stream(content: bytes, key: Key) -> bytes:
    """A cipher without a tag: counter mode by a hash."""
    import hashlib

    pad = b"".join(hashlib.sha256(key.secret + bytes([i])).digest() for i in range(-(-len(content) // 32)))
    return bytes(a ^ b for a, b in zip(content, pad, strict=False))


def test_a_vault_without_a_tag_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untagged:
        def encrypt(self, nonce: bytes, content: bytes, about: bytes) -> bytes:
            return stream(content, KEY) + bytes(TAG)

        def decrypt(self, nonce: bytes, content: bytes, about: bytes) -> bytes:
            return stream(content[:-TAG], KEY)

    monkeypatch.setattr(vault, "_cipher", lambda key: Untagged())
    flipped: list[int] = []
    sealed = seal(b"weights" * 9, b"", KEY)
    for place in range(len(MAGIC) + NAME, len(sealed)):
        try:
            unseal(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :], b"", KEY, "it")
        except sm.UsageError:
            continue
        flipped.append(place)
    assert flipped, "the broken vault refused"
    with pytest.raises((AssertionError, pytest.fail.Exception, sm.UsageError)):
        test_every_changed_byte_is_found("weights.safetensors.aes", tmp_path)


CASES: dict[str, Callable[[bytes], bytes]] = {"appended": lambda b: b + b"\0", "doubled": lambda b: b + b}


@pytest.mark.parametrize("name", CASES)
def test_more_than_there_was(name: str) -> None:
    sealed = CASES[name](seal(torch.arange(4).numpy().tobytes(), b"about", KEY))
    with pytest.raises(sm.UsageError, match="nothing was loaded"):
        unseal(sealed, b"about", KEY, "it")
