"""The archive of signatures: written, found newest first, resolved from deltas, refused where it is wrong."""

from __future__ import annotations

import io
import os
import random
import struct
from pathlib import Path

import pytest
from blake3 import blake3

from incremental_backups_tools import delta
from incremental_backups_tools.archive import sigvault
from incremental_backups_tools.archive.sigvault import SigVault, SigVaultReader, SigVaultWriter, open_vault
from incremental_backups_tools.archive.tar import DIR, REGULAR, TarMember
from incremental_backups_tools.archive.volume_reader import open_volume
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.exceptions import (
    ArchiveFormatError,
    BackupError,
    ChainError,
    DeltaFormatError,
    IntegrityError,
    LimitExceededError,
    SignatureFormatError,
)


def signature_of(data: bytes) -> bytes:
    return delta.signature(io.BytesIO(data), block_len=512)


def delta_between(old: bytes, new: bytes) -> bytes:
    """A delta of one string to another, by small blocks."""
    old_signature = delta.Signature.from_bytes(delta.signature(io.BytesIO(old), block_len=64))
    return delta.delta(io.BytesIO(new), old_signature)


def write_vault(path: Path, members: dict[bytes, bytes]) -> Path:
    with SigVaultWriter(path) as vault:
        for name, content in members.items():
            vault.add_signature(name, content)
    return path


def extracted(vault: SigVaultReader, path: str | bytes) -> bytes | None:
    file = vault.extract(path)
    return None if file is None else file.read()


# Three states of one file; OLD and NEW share what MIDDLE lacks.
_CHANCE = random.Random(5)
_FILE = _CHANCE.randbytes(20_480)
OLD = signature_of(_FILE)
MIDDLE = signature_of(_CHANCE.randbytes(10_240) + _FILE[10_240:])
NEW = signature_of(_FILE[:15_360] + _CHANCE.randbytes(5_120))


class TestWriting:
    def test_files_are_added_by_their_paths(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "d").mkdir(parents=True)
        (source / "d" / "f").write_bytes(b"data" * 1000)
        (source / "empty").write_bytes(b"")
        with SigVaultWriter(tmp_path / "v", source) as vault:
            vault.add("d/f")
            vault.add(b"./empty", name="renamed")
        with SigVaultReader([tmp_path / "v"]) as reader:
            assert reader.names() == [b"d/f", b"renamed"]
            assert extracted(reader, "d/f") == delta.signature(io.BytesIO(b"data" * 1000))
            assert extracted(reader, "renamed") == delta.signature(io.BytesIO(b""))

    def test_paths_start_from_the_current_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "f").write_bytes(b"x")
        monkeypatch.chdir(tmp_path)
        with SigVaultWriter("v") as vault:
            vault.add("f")
        with SigVaultReader(["v"]) as reader:
            assert "f" in reader

    def test_a_file_object_needs_no_file_on_disk(self, tmp_path: Path) -> None:
        with SigVaultWriter(tmp_path / "v") as vault:
            vault.add(fileobj=io.BytesIO(b"one"), name=b"\xff\n")
            vault.add("two", io.BytesIO(b"two"))
        with SigVaultReader([tmp_path / "v"]) as reader:
            assert reader.names() == [b"two", b"\xff\n"]
            assert extracted(reader, b"\xff\n") == delta.signature(io.BytesIO(b"one"))

    def test_the_offset_is_that_of_the_signature_in_the_tar(self, tmp_path: Path) -> None:
        with SigVaultWriter(tmp_path / "v") as vault:
            offsets = [vault.add_signature(b"a", OLD), vault.add_signature(b"n" * 300, NEW)]
        with open_volume(tmp_path / "v") as volume:
            assert [volume.read(offset, len(OLD)) for offset in offsets] == [OLD, NEW]

    def test_a_file_may_be_written_to_that_the_caller_has_open(self, tmp_path: Path) -> None:
        with (tmp_path / "v").open("w+b") as file:
            vault = SigVaultWriter(file)
            vault.add_signature(b"a", OLD)
            info = vault.close()
            assert vault.close() == info
            assert not file.closed
        data = (tmp_path / "v").read_bytes()
        assert (info.size, info.digest, info.member_count) == (len(data), blake3(data).digest(), 1)

    def test_a_vault_appears_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "v"
        with pytest.raises(KeyError), SigVaultWriter(path) as vault:
            vault.add_signature(b"a", OLD)
            raise KeyError
        assert os.listdir(tmp_path) == []
        with pytest.raises(ValueError, match="dropped"):
            vault.close()
        with SigVaultWriter(path) as vault:
            vault.add_signature(b"a", OLD)
            assert not path.exists()
        assert os.listdir(tmp_path) == ["v"]

    def test_a_vault_that_cannot_be_finished_leaves_nothing(self, tmp_path: Path) -> None:
        vault = SigVaultWriter(tmp_path / "v", level=10_000)
        vault.add_signature(b"a", OLD)
        with pytest.raises(ValueError, match="level"):
            vault.close()
        assert os.listdir(tmp_path) == []

    def test_a_source_that_cannot_be_read_leaves_the_vault_usable(self, tmp_path: Path) -> None:
        with SigVaultWriter(tmp_path / "v", tmp_path) as vault:
            with pytest.raises(FileNotFoundError):
                vault.add("missing")
            vault.add_signature(b"a", OLD)
        with SigVaultReader([tmp_path / "v"]) as reader:
            assert reader.names() == [b"a"]

    @pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../x", "a/../../x", b"a\0b"])
    def test_a_path_outside_is_refused(self, tmp_path: Path, path: str | bytes) -> None:
        with SigVaultWriter(tmp_path / "v", tmp_path) as vault:
            with pytest.raises(ValueError, match="no path of a file"):
                vault.add(path)
            with pytest.raises(ValueError, match="no path of a file"):
                vault.add(fileobj=io.BytesIO(b""), name=path)

    def test_what_is_missing_is_said(self, tmp_path: Path) -> None:
        with SigVaultWriter(tmp_path / "v") as vault:
            with pytest.raises(ValueError, match="path or a name"):
                vault.add(fileobj=io.BytesIO())
            with pytest.raises(ValueError, match="path or a file object"):
                vault.add(name="a")
            with pytest.raises(ValueError, match="neither a signature nor a delta"):
                vault.add_signature(b"a", b"text")
        with pytest.raises(ValueError, match="closed"):
            vault.add_signature(b"a", OLD)


class TestReading:
    def test_the_newest_vault_wins(self, tmp_path: Path) -> None:
        older = write_vault(tmp_path / "1", {b"a": OLD, b"only old": MIDDLE})
        newer = write_vault(tmp_path / "2", {b"a": NEW})
        with SigVaultReader([newer, older]) as reader:
            assert extracted(reader, "a") == NEW
            assert extracted(reader, "./only old") == MIDDLE
            assert reader.extract("b") is None
            assert reader.names() == [b"a", b"only old"]
            assert ("a" in reader, b"only old" in reader, "b" in reader) == (True, True, False)

    def test_of_two_members_with_one_name_the_later_counts(self, tmp_path: Path) -> None:
        with SigVaultWriter(tmp_path / "v") as vault:
            vault.add_signature(b"a", OLD)
            vault.add_signature(b"a", NEW)
        with SigVaultReader([tmp_path / "v"]) as reader:
            assert extracted(reader, "a") == NEW

    def test_a_delta_is_resolved_with_the_next_older_vaults(self, tmp_path: Path) -> None:
        vaults = [
            write_vault(tmp_path / "4", {b"a": delta_between(MIDDLE, NEW)}),
            write_vault(tmp_path / "3", {b"other": OLD}),
            write_vault(tmp_path / "2", {b"a": delta_between(OLD, MIDDLE)}),
            write_vault(tmp_path / "1", {b"a": OLD}),
        ]
        with SigVaultReader(vaults) as reader:
            assert extracted(reader, "a") == NEW
        with SigVaultReader(vaults[2:]) as reader:
            assert extracted(reader, "a") == MIDDLE

    def test_open_volumes_are_read_and_left_open(self, tmp_path: Path) -> None:
        path = write_vault(tmp_path / "v", {b"a": OLD})
        with open_volume(path) as volume:
            with SigVaultReader([volume]) as reader:
                assert extracted(reader, "a") == OLD
            assert volume.read(0, 1) == b"a"

    def test_a_delta_without_its_base_is_a_broken_chain(self, tmp_path: Path) -> None:
        path = write_vault(tmp_path / "v", {b"a": delta_between(OLD, NEW)})
        with SigVaultReader([path]) as reader, pytest.raises(ChainError, match="no older vault"):
            reader.extract("a")

    def test_a_delta_on_the_wrong_base_is_found_by_its_digest(self, tmp_path: Path) -> None:
        vaults = [
            write_vault(tmp_path / "2", {b"a": delta_between(OLD, NEW)}),
            write_vault(tmp_path / "1", {b"a": MIDDLE}),
        ]
        with SigVaultReader(vaults) as reader:
            with pytest.raises(IntegrityError) as caught:
                reader.extract("a", digest=blake3(NEW).digest())
            assert caught.value.path == "a"
            assert caught.value.expected == blake3(NEW).hexdigest()
            file = reader.extract("a", digest=blake3(extracted(reader, "a") or b"").digest())
            assert file is not None

    def test_a_delta_that_makes_no_signature_is_refused(self, tmp_path: Path) -> None:
        vaults = [
            write_vault(tmp_path / "2", {b"a": delta_between(OLD, b"no signature at all")}),
            write_vault(tmp_path / "1", {b"a": OLD}),
        ]
        with SigVaultReader(vaults) as reader, pytest.raises(SignatureFormatError):
            reader.extract("a")

    @pytest.mark.parametrize("command", [b"\x45\x00\xff\xff\x01\x00", b"\x41\x10", b"\xff"])
    def test_a_broken_delta_is_refused(self, tmp_path: Path, command: bytes) -> None:
        vaults = [
            write_vault(tmp_path / "2", {b"a": struct.pack(">I", 0x72730236) + command}),
            write_vault(tmp_path / "1", {b"a": OLD}),
        ]
        with SigVaultReader(vaults) as reader, pytest.raises(DeltaFormatError):
            reader.extract("a")

    def test_what_is_no_signature_is_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "v").open("w+b") as file:
            volume = VolumeWriter(file)
            volume.add(TarMember(b"a", REGULAR, 4), b"text")
            volume.add(TarMember(b"empty"))
            volume.add(TarMember(b"d", DIR))
            volume.finish()
        with SigVaultReader([tmp_path / "v"]) as reader:
            for name in ("a", "empty"):
                with pytest.raises(SignatureFormatError, match="no signature"):
                    reader.extract(name)
            assert "d" not in reader

    def test_signatures_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sigvault, "MAX_SIGNATURE_LEN", len(OLD))
        huge = delta_between(OLD, OLD * 2)
        assert len(huge) < len(OLD)
        vaults = [
            write_vault(tmp_path / "2", {b"a": huge, b"b": OLD * 2}),
            write_vault(tmp_path / "1", {b"a": OLD}),
        ]
        with SigVaultReader(vaults) as reader:
            for name in ("a", "b"):
                with pytest.raises(LimitExceededError):
                    reader.extract(name)

    def test_what_is_no_vault_is_refused(self, tmp_path: Path) -> None:
        good = write_vault(tmp_path / "good", {b"a": OLD})
        (tmp_path / "cut").write_bytes(good.read_bytes()[:-20])
        (tmp_path / "empty").write_bytes(b"")
        for name in ("cut", "empty"):
            with pytest.raises(ArchiveFormatError, match=name):
                SigVaultReader([good, tmp_path / name])
        with pytest.raises(FileNotFoundError):
            SigVaultReader([tmp_path / "missing"])

    def test_a_closed_reader_reads_no_more(self, tmp_path: Path) -> None:
        reader = SigVaultReader([write_vault(tmp_path / "v", {b"a": OLD})])
        reader.close()
        reader.close()
        with pytest.raises((OSError, BackupError)):
            reader.extract("a")


class TestOpen:
    def test_a_vault_is_written_and_read_by_one_function(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"data")
        with open_vault(tmp_path / "v", "w", base_path=tmp_path) as writer:
            writer.add("f")
        with SigVault.open(tmp_path / "v") as reader:
            assert extracted(reader, "f") == delta.signature(io.BytesIO(b"data"))

    @pytest.mark.parametrize("mode", ["", "a", "rw", "rb"])
    def test_other_modes_are_refused(self, tmp_path: Path, mode: str) -> None:
        with pytest.raises(ValueError, match="mode"):
            SigVault.open(tmp_path / "v", mode)  # type: ignore[call-overload]

    def test_a_directory_is_searched_newest_first(self, tmp_path: Path) -> None:
        for day, content in (("20260101", OLD), ("20260103", NEW), ("20260102", MIDDLE)):
            write_vault(tmp_path / f"{day}T000000.000000Z.sigvault.0000.tar.zst", {b"a": content})
        write_vault(tmp_path / "20260103T000000.000000Z.sigvault.0001.tar.zst", {b"b": OLD})
        (tmp_path / "20260103T000000.000000Z.state.jsonl.zst").write_bytes(b"no vault")
        (tmp_path / ".20260104T000000.000000Z.sigvault.0000.tar.zst.0123456789abcdef.tmp").write_bytes(b"")
        with SigVault.open(tmp_path) as reader:
            assert extracted(reader, "a") == NEW
            assert reader.names() == [b"a", b"b"]

    def test_the_highest_generation_of_a_backup_counts(self, tmp_path: Path) -> None:
        stem = "20260101T000000.000000Z"
        write_vault(tmp_path / f"{stem}.sigvault.0000.tar.zst", {b"a": OLD, b"gone": OLD})
        write_vault(tmp_path / f"{stem}.g2.sigvault.0000.tar.zst", {b"a": MIDDLE})
        write_vault(tmp_path / f"{stem}.g10.sigvault.0000.tar.zst", {b"a": NEW})
        with SigVault.open(tmp_path) as reader:
            assert extracted(reader, "a") == NEW
            assert reader.names() == [b"a"]

    def test_a_key_picks_its_own_vaults(self, tmp_path: Path) -> None:
        (tmp_path / "docs").mkdir()
        write_vault(tmp_path / "docs" / "20260101T000000.000000Z.sigvault.0000.tar.zst", {b"in": OLD})
        write_vault(tmp_path / "docs.sigvault.2013.tar.zst", {b"beside": OLD})
        write_vault(tmp_path / "docs2.sigvault.2013.tar.zst", {b"other": OLD})
        with SigVault.open(tmp_path, key="docs") as reader:
            assert reader.names() == [b"beside", b"in"]
        with SigVault.open(tmp_path) as reader:
            assert reader.names() == [b"beside", b"other"]

    def test_a_directory_without_vaults_has_no_signatures(self, tmp_path: Path) -> None:
        with SigVault.open(tmp_path) as reader:
            assert reader.names() == []
            assert reader.extract("a") is None
