"""The file of API keys: what is in it holds, and what is not good is told without a word of it."""

import hashlib
from pathlib import Path

import pytest

from scheduler_svc.api_keys import find_key, read_api_keys
from scheduler_svc.messages import ApiKey, TenantLimits

HASH = hashlib.sha256(b"a-key").hexdigest()
OTHER_HASH = hashlib.sha256(b"another-key").hexdigest()


def key_file(folder: Path, content: str) -> str:
    path = folder / "keys.toml"
    path.write_text(content)
    return str(path)


def entry(sha256: str = HASH, tenant: str = "a", **fields: str) -> str:
    lines = [f'sha256 = "{sha256}"', f'tenant = "{tenant}"', *(f"{k} = {v}" for k, v in fields.items())]
    return "\n".join(["[[keys]]", *lines, ""])


def test_every_field_of_an_entry_holds(tmp_path: Path):
    whole = entry(max_concurrency="3", tokens_per_second="1.5", share_prefix_cache="true", admin="true")
    file = read_api_keys(key_file(tmp_path, whole + entry(OTHER_HASH, "b")))
    assert file.keys == (
        ApiKey(bytes.fromhex(HASH), "a", shares_prefix_cache=True, is_admin=True),
        ApiKey(bytes.fromhex(OTHER_HASH), "b"),
    )
    assert file.limits == (TenantLimits("a", 3, 1.5), TenantLimits("b"))


def test_a_key_is_found_by_its_hash_alone(tmp_path: Path):
    keys = read_api_keys(key_file(tmp_path, entry() + entry(OTHER_HASH, "b"))).keys
    assert find_key(keys, "a-key") is keys[0]
    assert find_key(keys, "another-key") is keys[1]
    for wrong in ("", "a-ke", "a-key ", "A-key", HASH, "\udcff"):
        assert find_key(keys, wrong) is None


def test_a_tenant_may_have_several_keys_of_which_one_is_an_administrators(tmp_path: Path):
    content = entry(max_concurrency="2") + entry(OTHER_HASH, max_concurrency="2", admin="true")
    file = read_api_keys(key_file(tmp_path, content))
    assert [key.is_admin for key in file.keys] == [False, True]
    assert file.limits == (TenantLimits("a", 2),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "[[keys]]"),
        ("keys = []", "[[keys]]"),
        ("keys = 5", "[[keys]]"),
        ("[keys]", "[[keys]]"),
        (f'other = "nsk-secret"\n{entry()}', "[[keys]]"),
        ('[[keys]\nsha256 = "nsk-secret"', "TOML"),
        ('"nsk-secret', "TOML"),
        (entry("nsk-secret"), "keys[0].sha256"),
        (entry(HASH.upper()), "keys[0].sha256"),
        (entry(HASH + "0"), "keys[0].sha256"),
        ('[[keys]]\ntenant = "a"', "keys[0].sha256"),
        (entry(tenant=""), "keys[0].tenant"),
        (entry(tenant="a\\u0000b"), "keys[0].tenant"),
        (entry(tenant="nsk secret"), "keys[0].tenant"),
        (f'[[keys]]\nsha256 = "{HASH}"', "keys[0].tenant"),
        (entry(max_concurrency="0"), "keys[0].max_concurrency"),
        (entry(max_concurrency="true"), "keys[0].max_concurrency"),
        (entry(max_concurrency="1.5"), "keys[0].max_concurrency"),
        (entry(tokens_per_second="0"), "keys[0].tokens_per_second"),
        (entry(tokens_per_second="inf"), "keys[0].tokens_per_second"),
        (entry(tokens_per_second="nan"), "keys[0].tokens_per_second"),
        (entry(tokens_per_second='"nsk-secret"'), "keys[0].tokens_per_second"),
        (entry(admin='"nsk-secret"'), "keys[0].admin"),
        (entry(share_prefix_cache="1"), "keys[0].share_prefix_cache"),
        (entry(**{"nsk-secret": "1"}), "keys[0]: may have"),
        (entry() + entry(), "keys[1].sha256"),
        (entry() + entry(OTHER_HASH, max_concurrency="1"), "keys[1]: has other limits"),
        (entry() + entry(OTHER_HASH, share_prefix_cache="true"), "keys[1]: has other limits"),
    ],
)
def test_a_file_that_is_no_good_is_told_with_its_flag_and_never_quoted(
    content: str, told: str, tmp_path: Path
):
    with pytest.raises(ValueError, match="--api-key-file") as refusal:
        read_api_keys(key_file(tmp_path, content))
    assert told in str(refusal.value)
    assert "nsk" not in str(refusal.value)


def test_a_file_that_is_not_there_or_no_text_is_told_too(tmp_path: Path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in ("missing", "binary", "."):
        with pytest.raises(ValueError, match="--api-key-file"):
            read_api_keys(str(tmp_path / path))
