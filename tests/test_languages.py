"""What Whisper and datasets call a language, and which config of a dataset holds it."""

from __future__ import annotations

import pytest

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.languages import (
    UNSPACED_LANGUAGES,
    _keys,
    _missing,
    _whisper_names,
    iso_code,
    match_config,
    names_a_language,
    resolve_language,
    whisper_code,
)

FLEURS = ["af_za", "cmn_hans_cn", "en_us", "es_419", "fil_ph", "it_it", "jv_id", "nb_no", "yue_hant_hk", "all"]
COMMON_VOICE = ["ar", "dv", "es", "it", "nn-NO", "sv-SE", "zh-CN", "zh-HK", "zh-TW"]
LIBRISPEECH_MULTILINGUAL = ["dutch", "italian", "portuguese"]


@pytest.mark.parametrize(
    ("language_code", "language", "code"),
    [
        ("it", None, "it"),
        ("IT", None, "it"),
        ("it_it", None, "it"),
        ("it-IT", None, "it"),
        ("Italian", None, "it"),
        ("ita", None, "it"),
        ("cmn_hans_cn", None, "zh"),
        ("zh-TW", None, "zh"),
        ("yue_hant_hk", None, "yue"),
        ("nb_no", None, "no"),
        ("fil_ph", None, "tl"),
        ("jv_id", None, "jw"),
        ("castilian", None, "es"),
        ("haitian creole", None, "ht"),
        ("clean", "English", "en"),
        ("dv", "Sinhala", "si"),
        ("dv", "si", "si"),
    ],
)
def test_language_token(language_code: str, language: str | None, code: str) -> None:
    assert resolve_language(language_code, language).code == code


@pytest.mark.parametrize(
    ("name", "code", "iso"),
    [
        ("cmn_hans_cn", "zh", "zh"),
        ("nb_no", "no", "no"),
        ("fil_ph", "tl", "tl"),
        ("ita", "it", "it"),
        ("it_it", "it", "it"),
        ("Italian", "it", "it"),
        ("en_us", "en", "en"),
        ("jv_id", "jw", "jv"),
        ("dv", None, "dv"),
        ("ckb_iq", None, "ckb"),
        ("dhivehi", None, "dv"),
        ("ace_id", None, "ace"),
        ("clean", None, None),
    ],
)
def test_what_whisper_and_the_hub_call_a_config_s_language(name: str, code: str | None, iso: str | None) -> None:
    assert (whisper_code(name), iso_code(name)) == (code, iso)


def test_missing_language_says_how_to_choose_the_closest() -> None:
    with pytest.raises(PermanentError) as failure:
        resolve_language("dv", None)
    assert "Dhivehi" in failure.value.given
    assert "--language Sinhala" in failure.value.action


def test_misspelt_language_names_the_nearest() -> None:
    with pytest.raises(PermanentError, match="did you mean Italian"):
        resolve_language("it", "Itallian")
    with pytest.raises(PermanentError, match="did you mean Italian"):
        resolve_language("italien", None)


def test_unknown_code_is_an_error() -> None:
    with pytest.raises(PermanentError, match="names no language"):
        resolve_language("xx", None)


@pytest.mark.parametrize(
    ("configs", "language_code", "config"),
    [
        (FLEURS, "it", "it_it"),
        (FLEURS, "it-IT", "it_it"),
        (FLEURS, "zh", "cmn_hans_cn"),
        (FLEURS, "no", "nb_no"),
        (FLEURS, "tl", "fil_ph"),
        (FLEURS, "jw", "jv_id"),
        (FLEURS, "yue", "yue_hant_hk"),
        (FLEURS, "es", "es_419"),
        (FLEURS, "all", "all"),
        (COMMON_VOICE, "it", "it"),
        (COMMON_VOICE, "it_it", "it"),
        (COMMON_VOICE, "sv", "sv-SE"),
        (COMMON_VOICE, "dv", "dv"),
        (COMMON_VOICE, "zh_tw", "zh-TW"),
        (LIBRISPEECH_MULTILINGUAL, "it", "italian"),
        (["ita", "fra"], "it", "ita"),
        (["div", "ita"], "dv", "div"),
        (["default"], "it", "default"),
        (["clean"], "en", "clean"),
        (["clean", "other"], "clean", "clean"),
        (["pt-BR", "pt-PT"], "pt_br", "pt-BR"),
    ],
)
def test_config_of_a_language(configs: list[str], language_code: str, config: str) -> None:
    assert match_config(configs, language_code) == config


@pytest.mark.parametrize(
    ("configs", "language_code", "said"),
    [
        (COMMON_VOICE, "zh", "zh-CN, zh-HK, zh-TW"),
        (COMMON_VOICE, "de", "ar, dv, es, it"),
        (["pt_br"], "pt-PT", "pt_br"),
        (["de"], "it", "de"),
        (["clean", "other"], "en", "clean, other"),
        (["no_speech", "speech"], "no", "no_speech, speech"),
    ],
)
def test_none_or_several_configs_are_listed(configs: list[str], language_code: str, said: str) -> None:
    with pytest.raises(PermanentError) as failure:
        match_config(configs, language_code)
    assert said in str(failure.value)


def test_names_of_languages() -> None:
    assert all(map(names_a_language, ["it", "it_it", "it-IT", "ita", "Italian", "cmn_hans_cn", "dv", "dhivehi"]))
    assert not any(map(names_a_language, ["default", "data", "clean", "clips", "audio", "train", "no_speech"]))


def test_tables_agree_with_whisper() -> None:
    whisper = _whisper_names()
    assert set(whisper) <= set(_keys()), "every language of Whisper is known by its code"
    assert {closest for _, closest in _missing().values()} <= set(whisper.values())
    assert not set(_missing()) & set(whisper)
    assert set(whisper) >= UNSPACED_LANGUAGES
    assert all(code in whisper or code in _missing() for code in _keys().values())
